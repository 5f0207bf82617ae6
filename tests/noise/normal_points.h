// Normal points in double precision.
#pragma once

#include "tests/support.h"
#include "tiltflow/tensor/random.h"

namespace tiltflow::test {

inline at::Tensor normal_points(std::int64_t n, at::IntArrayRef shape, std::uint32_t key = 0) {
  return RandomStreams(11).normal(Purpose::kProbe, key, 0, 0, n, shape, at::kDouble);
}

}  // namespace tiltflow::test
