// A generator that assignments invert at once.
#pragma once

#include "tests/support.h"
#include "tiltflow/models/generator/generator.h"
#include "tiltflow/tensor/random.h"

namespace tiltflow::test {

inline const RandomStreams kAssignStreams(31);

// G(z) = tanh(A z): an invertible toy whose optimum is known.
inline std::unique_ptr<Generator> toy_generator(std::int64_t d = 9, double gain = 0.3) {
  ParameterSet p;
  p.add("0.weight", kAssignStreams.normal(Purpose::kInit, 0, 0, 0, 16, {d}) * gain);
  p.add("0.bias", at::zeros({16}));
  return make_mlp_generator(p, {});
}

}  // namespace tiltflow::test
