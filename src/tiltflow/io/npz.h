// NumPy archives: what evaluation scripts of image generators read and write (arr_0: images [N, H, W, C] uint8; mu and sigma:
// feature statistics).
#pragma once

#include <filesystem>

#include "tiltflow/tensor/parameters.h"

namespace tiltflow {

// Atomic; uint8, int32, int64, fp32 and fp64 tensors, stored uncompressed. Throws kFailure for other types.
void write_npz(const std::filesystem::path& path, const ParameterSet& arrays);
// Arrays by name, stored or deflated; the types above, little-endian, C or Fortran order. Never unpickles: object arrays are
// refused. Throws kBadFile.
ParameterSet read_npz(const std::filesystem::path& path);

}  // namespace tiltflow
