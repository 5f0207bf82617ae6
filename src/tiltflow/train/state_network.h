// A small network on states that is trained beside the policy: two strided convolutions or a hidden layer, then one more hidden layer.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tiltflow/tensor/parameters.h"
#include "tiltflow/tensor/random.h"

namespace tiltflow {

struct StateNetworkShape {
  std::vector<std::int64_t> state;  // [d] or [C, H, W]
  std::int64_t classes = 0;         // > 0: labels enter, the null class included
  std::int64_t width = 64, outputs = 1;
};
// `name` keys the random streams.
ParameterSet init_state_network(const StateNetworkShape& shape, const std::string& name, const RandomStreams& streams);
// states [N, ...], labels [N] or undefined -> [N, outputs], fp32
at::Tensor state_network(const ParameterSet& weights, const at::Tensor& states, const at::Tensor& labels);

}  // namespace tiltflow
