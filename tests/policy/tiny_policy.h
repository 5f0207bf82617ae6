// A SiT of a few weights, and what it answers at one input.
#pragma once

#include "tests/support.h"
#include "tiltflow/models/sit/sit.h"
#include "tiltflow/policy/policy.h"

namespace tiltflow::test {

inline std::shared_ptr<const VelocityModel> tiny_sit() {
  SitConfig c;
  c.input_size = 8;
  c.patch_size = 4;
  c.in_channels = 1;
  c.hidden_size = 16;
  c.depth = 2;
  c.num_heads = 2;
  c.num_classes = 3;
  c.learn_sigma = false;
  ParameterSet weights;
  std::uint32_t key = 0;
  for (const auto& [name, tensor] : init_sit(c, RandomStreams(1))) {
    weights.add(name, name == "pos_embed" ? tensor
                                          : RandomStreams(9).normal(Purpose::kInit, 3, ++key, 0, 1,
                                                                    tensor.sizes())[0] *
                                                0.2);
  }
  return make_sit(c, weights);
}

inline FlowModel flow_of(std::shared_ptr<const VelocityModel> model) {
  return {std::move(model), make_path("linear"), "velocity"};
}

inline const at::Tensor kTinyInput =
    RandomStreams(2).normal(Purpose::kPrior, 0, 0, 0, 3, {1, 8, 8});

inline at::Tensor velocity_of(const VelocityField& field) {
  const at::NoGradGuard no_grad;
  return field.velocity(kTinyInput, time_tensor(0.4, kTinyInput), {});
}

}  // namespace tiltflow::test
