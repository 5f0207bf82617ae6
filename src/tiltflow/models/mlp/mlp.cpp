#include "tiltflow/models/mlp/mlp.h"

#include <numbers>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/nn/init.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/tensor/device.h"

namespace tiltflow {
namespace {

class Mlp final : public VelocityModel {
 public:
  Mlp(MlpConfig config, ParameterSet parameters, const AdapterSet& adapters, ModelRuntime runtime)
      : config_(config),
        spec_{"mlp", to_args(config)},
        parameters_(std::move(parameters)),
        runtime_(runtime) {
    for (const std::string& name : linear_layers()) {
      layers_.push_back(make_linear(parameters_, adapters, name));
    }
  }
  const ModelSpec& spec() const override { return spec_; }
  const ParameterSet& parameters() const override { return parameters_; }
  std::vector<std::int64_t> sample_shape() const override { return {config_.dimension}; }
  std::int64_t classes() const override { return 0; }
  bool is_buffer(const std::string&) const override { return false; }
  std::vector<std::string> linear_layers() const override {
    std::vector<std::string> names;
    for (std::int64_t i = 0; i <= config_.depth; ++i) names.push_back(cat("layers.", i));
    return names;
  }
  std::unique_ptr<VelocityModel> rebind(ParameterSet parameters,
                                        AdapterSet adapters) const override {
    return std::make_unique<Mlp>(config_, std::move(parameters), adapters, runtime_);
  }

  at::Tensor velocity(const at::Tensor& x, const at::Tensor& t, const Condition&) const override {
    const at::Tensor& first = layers_[0].weight;
    const at::Tensor state = on_device_of(first, x.to(first.scalar_type()));
    // Fourier features cos/sin(pi j t), j = 1..F, plus t itself
    const at::Tensor j =
        at::arange(1, config_.frequencies + 1, state.options().requires_grad(false)) *
        std::numbers::pi;
    const at::Tensor time = on_device_of(first, t.to(state.scalar_type())).unsqueeze(1);
    at::Tensor h = at::cat({state, time, (time * j).cos(), (time * j).sin()}, 1);
    for (std::size_t i = 0; i + 1 < layers_.size(); ++i) {
      h = at::silu(apply(layers_[i], h, runtime_.precision));
    }
    return on_device_of(x, apply(layers_.back(), h, runtime_.precision).to(x.scalar_type()));
  }

 private:
  MlpConfig config_;
  ModelSpec spec_;
  ParameterSet parameters_;
  ModelRuntime runtime_;
  std::vector<Linear> layers_;
};

}  // namespace

MlpConfig mlp_config_from_args(const std::map<std::string, std::string>& args, MlpConfig config) {
  static const std::vector<std::string> kNames{"dimension", "hidden_size", "depth", "frequencies"};
  for (const auto& [key, text] : args) {
    char* end = nullptr;
    const long long value = std::strtoll(text.c_str(), &end, 10);
    if (text.empty() || *end || value < 1 || value > (1 << 20)) {
      fail(ErrorKind::kConfig,
           cat("model argument ", key, " = '", text, "': expected a positive integer"));
    }
    if (key == "dimension") {
      config.dimension = value;
    } else if (key == "hidden_size") {
      config.hidden_size = value;
    } else if (key == "depth") {
      config.depth = value;
    } else if (key == "frequencies") {
      config.frequencies = value;
    } else {
      fail(ErrorKind::kConfig,
           cat("the MLP has no argument '", key, "'", did_you_mean(key, kNames)));
    }
  }
  return config;
}

std::map<std::string, std::string> to_args(const MlpConfig& c) {
  return {{"dimension", cat(c.dimension)},
          {"hidden_size", cat(c.hidden_size)},
          {"depth", cat(c.depth)},
          {"frequencies", cat(c.frequencies)}};
}

ParameterSet init_mlp(const MlpConfig& c, const RandomStreams& streams) {
  ParameterSet out;
  std::int64_t in = c.dimension + 1 + 2 * c.frequencies;
  for (std::int64_t i = 0; i <= c.depth; ++i) {
    const bool last = i == c.depth;
    const std::int64_t rows = last ? c.dimension : c.hidden_size;
    const std::string name = cat("layers.", i);
    out.add(name + ".weight",
            last ? at::zeros({rows, in}) : fan_in_uniform(streams, name, {rows, in}, in));
    out.add(name + ".bias", at::zeros({rows}));
    in = rows;
  }
  return out;
}

std::unique_ptr<VelocityModel> make_mlp(const MlpConfig& config, ParameterSet parameters,
                                        AdapterSet adapters, ModelRuntime runtime) {
  return std::make_unique<Mlp>(config, std::move(parameters), adapters, runtime);
}

}  // namespace tiltflow
