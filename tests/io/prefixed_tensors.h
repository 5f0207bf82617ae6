// Tensors under prefixes, as checkpoints of several networks hold them.
#pragma once

#include "tests/support.h"
#include "tiltflow/tensor/parameters.h"

namespace tiltflow::test {

// Two tensors with the given value under each prefix.
inline ParameterSet prefixed_tensors(const std::vector<std::pair<std::string, double>>& prefixes) {
  ParameterSet out;
  for (const auto& [prefix, value] : prefixes) {
    out.add(prefix + "fc.weight", at::full({2, 2}, value));
    out.add(prefix + "blocks.0.bias", at::full({2}, value));
  }
  return out;
}

}  // namespace tiltflow::test
