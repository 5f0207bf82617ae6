// NumPy archives: what evaluation scripts of image generators read (arr_0: images [N, H, W, C] uint8).
#pragma once

#include <filesystem>

#include "tiltflow/tensor/parameters.h"

namespace tiltflow {

// Atomic; uint8, int32, int64, fp32 and fp64 tensors, stored uncompressed. Throws kFailure for other types.
void write_npz(const std::filesystem::path& path, const ParameterSet& arrays);

}  // namespace tiltflow
