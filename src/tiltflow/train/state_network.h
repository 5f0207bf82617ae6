// A small network on states that is trained beside the policy: two strided convolutions or a hidden
// layer, then one more hidden layer.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tiltflow/finetune/method.h"

namespace tiltflow {

// How a network beside the policy is fitted to samples of the policy.
struct SideFitConfig {
  std::int64_t every = 0;      // steps between refreshes
  std::int64_t samples = 128;  // drawn at a refresh
  std::int64_t fits = 100;     // optimiser steps of a refresh, ten times as many for the first
  std::int64_t width = 64;
  double learning_rate = 2e-3;
};
// All but `every`.
void bind_side_fit(Fields& f, SideFitConfig& c);

// Samples of the collecting policy with the noise they come from; `key` is one that no training
// step uses. Cost: n x K network calls.
struct SideSamples {
  at::Tensor x_0, x_1, labels;
};
SideSamples policy_samples(const FinetuneContext& context, std::uint32_t key, std::int64_t n);

struct StateNetworkShape {
  std::vector<std::int64_t> state;  // [d] or [C, H, W]
  std::int64_t classes = 0;         // > 0: labels enter, the null class included
  std::int64_t width = 64;
  std::int64_t outputs = 1;
};
// `name` keys the random streams.
ParameterSet init_state_network(const StateNetworkShape& shape, const std::string& name,
                                const RandomStreams& streams);
// states [N, ...], labels [N] or undefined -> [N, outputs], fp32
at::Tensor state_network(const ParameterSet& weights, const at::Tensor& states,
                         const at::Tensor& labels);

}  // namespace tiltflow
