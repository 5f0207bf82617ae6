#include "tiltflow/models/control/control_net.h"

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/nn/embedding.h"
#include "tiltflow/nn/init.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/tensor/device.h"

namespace tiltflow {
namespace {

constexpr std::int64_t kFeatures = 128;
constexpr std::int64_t kGroups = 8;
// Sinusoids see 1000 t: with t itself the slow ones would hardly move between noise and data.
constexpr double kTimeScale = 1000;

at::Tensor linear(const ParameterSet& p, const std::string& name, const at::Tensor& x) {
  return at::linear(x, p.at(name + ".weight"), p.at(name + ".bias"));
}

at::Tensor conditioning(const ParameterSet& p, const at::Tensor& t, const Condition& condition) {
  const at::Tensor features = timestep_features(
      on_device_of(p.at("time.0.weight"), t.to(p.at("time.0.weight").scalar_type())) * kTimeScale,
      kFeatures);
  at::Tensor c = linear(p, "time.2", at::silu(linear(p, "time.0", features)));
  if (p.contains("labels.weight")) {
    const at::Tensor& table = p.at("labels.weight");
    const at::Tensor labels = condition.labels.defined()
                                  ? condition.labels
                                  : at::full({t.size(0)}, table.size(0) - 1, at::kLong);
    c = c + at::embedding(table, on_device_of(table, labels));
  }
  return at::silu(c);
}

// h (1 + scale) + shift with both from the conditioning; h [N, width, ...].
at::Tensor modulate(const ParameterSet& p, const std::string& name, const at::Tensor& h,
                    const at::Tensor& c) {
  std::vector<std::int64_t> shape(static_cast<std::size_t>(h.dim()), 1);
  shape[0] = h.size(0);
  shape[1] = h.size(1);
  const std::vector<at::Tensor> both = linear(p, name, c).chunk(2, 1);
  return h * (both[0].reshape(shape) + 1) + both[1].reshape(shape);
}

}  // namespace

const std::vector<std::string>& control_kinds() {
  static const std::vector<std::string> kinds{"mlp", "conv", "lowrank", "potential"};
  return kinds;
}

ParameterSet init_control(const ControlConfig& c, const std::vector<std::int64_t>& shape,
                          std::int64_t classes, const RandomStreams& streams) {
  if (c.kind == "conv" && shape.size() != 3) {
    fail(ErrorKind::kConfig, "a convolutional control needs images",
         "use control kind mlp or lowrank");
  }
  if (c.kind == "conv" && c.width % kGroups != 0) {
    fail(ErrorKind::kConfig,
         cat("control.width ", c.width, " must be a multiple of ", kGroups, " for conv"));
  }
  std::int64_t d = 1;
  for (const std::int64_t size : shape) d *= size;
  ParameterSet out;
  const auto dense = [&](const std::string& name, std::int64_t rows, std::int64_t in,
                         bool zero = false) {
    out.add(name + ".weight", zero ? at::zeros({rows, in})
                                   : fan_in_uniform(streams, "control." + name, {rows, in}, in));
    out.add(name + ".bias", at::zeros({rows}));
  };
  dense("time.0", c.width, kFeatures);
  dense("time.2", c.width, c.width);
  if (classes > 0) {
    out.add("labels.weight", normal_init(streams, "control.labels", {classes + 1, c.width}, 0.02));
  }
  if (c.kind == "lowrank") {
    out.add("down.weight", fan_in_uniform(streams, "control.down", {c.width, d}, d));
    dense("modulation", 2 * c.width, c.width);
    out.add("up.weight", at::zeros({d, c.width}));
    return out;
  }
  const bool conv = c.kind == "conv";
  for (std::int64_t i = 0; i < c.depth; ++i) {
    const std::int64_t in = i > 0 ? c.width : conv ? shape[0] : d;
    const std::string name = cat("layers.", i);
    if (conv) {
      out.add(name + ".weight",
              fan_in_uniform(streams, "control." + name, {c.width, in, 3, 3}, in * 9));
      out.add(name + ".bias", at::zeros({c.width}));
      out.add(cat("norms.", i, ".weight"), at::ones({c.width}));
      out.add(cat("norms.", i, ".bias"), at::zeros({c.width}));
    } else {
      dense(name, c.width, in);
    }
    dense(cat("modulation.", i), 2 * c.width, c.width);
  }
  if (conv) {
    out.add("output.weight", at::zeros({shape[0], c.width, 3, 3}));
    out.add("output.bias", at::zeros({shape[0]}));
  } else if (c.kind == "potential") {
    out.add("output.weight", at::zeros({1, c.width}));  // a bias would have no gradient
  } else {
    dense("output", d, c.width, true);
  }
  return out;
}

namespace {

// What the last layer answers: like x, or [N, 1] of potential.
at::Tensor network_output(const ControlConfig& c, const ParameterSet& p, const at::Tensor& x,
                          const at::Tensor& t, const Condition& condition) {
  const at::Tensor state =
      on_device_of(p.at("time.0.weight"), x.to(p.at("time.0.weight").scalar_type()));
  const at::Tensor cond = conditioning(p, t, condition);
  if (c.kind == "lowrank") {
    const at::Tensor middle =
        modulate(p, "modulation", at::matmul(state.flatten(1), p.at("down.weight").t()), cond);
    return at::matmul(middle, p.at("up.weight").t());
  }
  at::Tensor h = c.kind == "conv" ? state : state.flatten(1);
  for (std::int64_t i = 0; i < c.depth; ++i) {
    const std::string name = cat("layers.", i);
    if (c.kind == "conv") {
      h = at::conv2d(h, p.at(name + ".weight"), p.at(name + ".bias"), 1, 1);
      h = at::group_norm(h, kGroups, p.at(cat("norms.", i, ".weight")),
                         p.at(cat("norms.", i, ".bias")));
    } else {
      h = linear(p, name, h);
    }
    h = at::silu(modulate(p, cat("modulation.", i), h, cond));
  }
  if (c.kind == "potential") return at::linear(h, p.at("output.weight"));
  return c.kind == "conv" ? at::conv2d(h, p.at("output.weight"), p.at("output.bias"), 1, 1)
                          : linear(p, "output", h);
}

}  // namespace

at::Tensor control_potential(const ControlConfig& c, const ParameterSet& p, const at::Tensor& x,
                             const at::Tensor& t, const Condition& condition) {
  return on_device_of(x, network_output(c, p, x, t, condition).squeeze(1));
}

at::Tensor control_output(const ControlConfig& c, const ParameterSet& p, const at::Tensor& x,
                          const at::Tensor& t, const Condition& condition) {
  if (c.kind != "potential") {
    return on_device_of(
        x, network_output(c, p, x, t, condition).reshape(x.sizes()).to(x.scalar_type()));
  }
  const bool graph = at::GradMode::is_enabled();
  const at::AutoGradMode grad(true);
  const at::Tensor state = graph && x.requires_grad() ? x : x.detach().set_requires_grad(true);
  const at::Tensor slope =
      torch::autograd::grad({control_potential(c, p, state, t, condition).sum()}, {state}, {},
                            std::nullopt, /*create_graph=*/graph)[0];
  return graph ? slope : slope.detach();
}

}  // namespace tiltflow
