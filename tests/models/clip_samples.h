// Recorded inputs and outputs of CLIP image towers.
#pragma once

#include "tests/support.h"
#include "tiltflow/io/safetensors.h"

namespace tiltflow::test {

inline std::filesystem::path clip_folder(const std::string& name) {
  return test::source_dir() / "tests/golden/clip" / name;
}

inline ParameterSet clip_golden(const std::string& name) {
  return read_safetensors(clip_folder(name + ".safetensors")).tensors;
}

}  // namespace tiltflow::test
