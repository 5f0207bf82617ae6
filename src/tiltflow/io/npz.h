// NumPy archives: what evaluation scripts of image generators read and write (arr_0: images [N, H,
// W, C] uint8; mu and sigma: feature statistics).
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "tiltflow/tensor/parameters.h"

namespace tiltflow {

// Atomic; uint8, int32, int64, fp32 and fp64 tensors, stored uncompressed. Throws kFailure for
// other types.
void write_npz(const std::filesystem::path& path, const ParameterSet& arrays);
// Arrays by name, stored or deflated, of all types that parse_npy (io/npy) reads; an .npy file is
// an archive of one array, arr_0. With `wanted` only these are read, if they are there: what stands
// beside them does not matter. Throws kBadFile.
ParameterSet read_npz(const std::filesystem::path& path,
                      const std::vector<std::string>& wanted = {});
std::vector<std::string> npz_names(
    const std::filesystem::path& path);  // of all arrays; throws kBadFile

}  // namespace tiltflow
