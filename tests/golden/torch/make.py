"""Small PyTorch files of every kind that the reader must take. Run with torch 2.13: python make.py"""
import argparse, collections, numpy, pathlib, torch

here = pathlib.Path(__file__).parent
base = torch.arange(24, dtype=torch.float32).reshape(4, 6) / 8
tensors = collections.OrderedDict(
    plain=base.clone(),
    transposed=base.t(),                   # not contiguous
    slice=base[1:3, ::2],                  # offset and strides, shares its storage with `transposed`
    expanded=torch.tensor([2.5]).expand(3),
    half=base[0].half(), brain=base[0].bfloat16(), double=base[0].double(),
    long=torch.tensor([-1, 2**40]), int=torch.tensor([-7], dtype=torch.int32), byte=torch.tensor([255], dtype=torch.uint8),
    bool=torch.tensor([True, False]), scalar=torch.tensor(1.25), empty=torch.zeros(0, 3),
    parameter=torch.nn.Parameter(torch.tensor([1.0, -1.0])))
torch.save(tensors, here / "zip.pt")
torch.save(tensors, here / "stream.pt", _use_new_zipfile_serialization=False)
layer = torch.nn.Linear(3, 2)
with torch.no_grad():
    layer.weight.copy_(torch.arange(6.0).reshape(2, 3)); layer.bias.copy_(torch.tensor([0.5, -0.5]))
optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3)
layer(torch.ones(1, 3)).sum().backward(); optimizer.step()
ema = {f"module.{k}": v + 1 for k, v in layer.state_dict().items()}
torch.save({"model": layer.state_dict(), "ema": ema, "opt": optimizer.state_dict(), "args": argparse.Namespace(lr=1e-3, model="tiny", null=None), "epoch": 3}, here / "trainer.pt")
# tensors beside the sections and inside the arguments, NumPy numbers
arguments = {"path_type": "GVP", "num_heads": numpy.int64(4), "decay": numpy.float32(0.5), "use_ema": numpy.bool_(True), "shift": numpy.int8(-3), "mean": torch.zeros(2)}
torch.save({"model": layer.state_dict(), "ema": ema, "opt": optimizer.state_dict(), "rng_state": torch.zeros(8, dtype=torch.uint8), "loss": torch.tensor(0.5), "args": arguments}, here / "beside.pt")
torch.save({"fc.weight": base, "fc.mask": base.to_sparse()}, here / "sparse.pt")
torch.save({"nothing": [1, 2.5, "three"]}, here / "no-tensors.pt")


class SquareReward(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return 3 * images.square().flatten(1).mean(1)


torch.jit.save(torch.jit.script(SquareReward()), here / "reward_module.pt")
