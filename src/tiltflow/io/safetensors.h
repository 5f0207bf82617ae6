// safetensors: 8-byte little-endian header length, JSON header, raw little-endian tensors.
// Reading maps the file; tensors are copied out of the map on load, so the file may be replaced
// afterwards. Files are untrusted: sizes, offsets, overlaps, gaps, duplicate keys and types are
// checked before any tensor is made.
#pragma once

#include <filesystem>
#include <map>
#include <string>

#include "tiltflow/tensor/parameters.h"

namespace tiltflow {

struct TensorFile {
  ParameterSet tensors;                         // in file-offset order
  std::map<std::string, std::string> metadata;  // the "__metadata__" entry
};

// Throws kBadFile with the reason and the tensor's name.
TensorFile read_safetensors(const std::filesystem::path& path);
// Atomic; tensors are written contiguous, sorted by name. Throws kFailure when the disk does.
void write_safetensors(const std::filesystem::path& path, const ParameterSet& tensors,
                       const std::map<std::string, std::string>& metadata = {});

}  // namespace tiltflow
