#include "tiltflow/train/state_network.h"

#include "tiltflow/nn/init.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {

void bind_side_fit(Fields& f, SideFitConfig& c) {
  f.value("samples", c.samples, "samples drawn at a refresh", at_least_integer(2));
  f.value("fits", c.fits, "optimiser steps of a refresh; ten times as many for the first",
          at_least_integer(1));
  f.value("width", c.width, "hidden units", at_least_integer(1));
  f.value("learning_rate", c.learning_rate, "of the fit", positive());
}

SideSamples policy_samples(const FinetuneContext& context, std::uint32_t key, std::int64_t n) {
  const at::NoGradGuard no_grad;
  SideSamples out;
  out.labels = context.labels(0, n);
  out.x_0 = prior_sample(context.streams, key, 0, n, context.sample_shape, context.dtype);
  out.x_1 = rollout(context.policy.collector(), context.table, out.x_0, Condition{out.labels},
                    keyed_noise(context.streams, key, 0, out.x_0))
                .last;
  return out;
}

ParameterSet init_state_network(const StateNetworkShape& shape, const std::string& name,
                                const RandomStreams& streams) {
  ParameterSet out;
  const auto layer = [&](const std::string& part, std::vector<std::int64_t> sizes) {
    std::int64_t fan_in = 1;
    for (std::size_t i = 1; i < sizes.size(); ++i) fan_in *= sizes[i];
    out.add(part + ".weight", fan_in_uniform(streams, name + "." + part, sizes, fan_in));
    out.add(part + ".bias", at::zeros({sizes[0]}));
  };
  const std::int64_t width = shape.width;
  if (shape.state.size() == 3) {
    layer("conv1", {width / 2 + 1, shape.state[0], 3, 3});
    layer("conv2", {width, width / 2 + 1, 3, 3});
  } else {
    std::int64_t entries = 1;
    for (const std::int64_t s : shape.state) entries *= s;
    layer("in", {width, entries});
  }
  if (shape.classes > 0) out.add("label.weight", at::zeros({shape.classes + 1, width}));
  layer("hidden", {width, width});
  layer("out", {shape.outputs, width});
  return out;
}

at::Tensor state_network(const ParameterSet& w, const at::Tensor& states,
                         const at::Tensor& labels) {
  at::Tensor h = states.to(at::kFloat);
  if (h.dim() == 4) {
    h = at::silu(at::conv2d(h, w.at("conv1.weight"), w.at("conv1.bias"), 2, 1));
    h = at::silu(at::conv2d(h, w.at("conv2.weight"), w.at("conv2.bias"), 2, 1)).flatten(2).mean(2);
  } else {
    h = at::silu(at::linear(h.flatten(1), w.at("in.weight"), w.at("in.bias")));
  }
  if (labels.defined() && w.contains("label.weight")) {
    h = h + w.at("label.weight").index_select(0, labels);
  }
  h = at::silu(at::linear(h, w.at("hidden.weight"), w.at("hidden.bias")));
  return at::linear(h, w.at("out.weight"), w.at("out.bias"));
}

}  // namespace tiltflow
