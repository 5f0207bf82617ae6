"""Writes arrays.npz: one 2 x 3 array in many types, byte orders and layouts; and refused.npz, which nobody can read without a pickle or a record type."""

import pathlib

import numpy as np

here = pathlib.Path(__file__).parent
base = np.array([[0, 1, 2], [3, 250, 5]])
arrays = {code.replace("<", "little_").replace(">", "big_").replace("|", ""): base.astype(code) for code in ("|u1", "<i2", ">i2", "<u2", ">u2", "<i4", ">u4", "<u8", ">i8", "<f2", ">f2", ">f4", "<f8", ">f8")}
arrays["i1"] = np.array([[0, 1, 2], [3, -6, 5]], np.int8)
arrays["bool"] = base > 2
arrays["fortran"] = np.asfortranarray(base.astype(">f8"))
arrays["scalar"] = np.array(2.5)
arrays["empty"] = np.zeros((0, 3), np.float32)
np.savez_compressed(here / "arrays.npz", **arrays)
np.savez(here / "refused.npz", objects=np.array([{}, None], object), records=np.zeros(2, [("a", "<f4"), ("b", "<i4")]), text=np.array(["a"]), complex=np.zeros(2, complex), huge=np.array([2**63], np.uint64), mu=np.zeros(2))
for version in ((2, 0), (3, 0)):
    with open(here / f"version{version[0]}.npy", "wb") as file:
        np.lib.format.write_array(file, base.astype("<f4"), version=version)
