#include "tiltflow/noise/flow_generator.h"

#include <algorithm>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/flow/prediction.h"
#include "tiltflow/flow/time_grid.h"
#include "tiltflow/io/tensor_file.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

const std::vector<std::string>& fixed_step_solvers() {
  static const std::vector<std::string> names{"ode-euler", "ode-midpoint", "ode-heun", "ode-rk4"};
  return names;
}

class FlowGenerator final : public Generator {
 public:
  FlowGenerator(std::shared_ptr<const VelocityModel> model, std::shared_ptr<const Path> path,
                std::string prediction, std::string solver, std::int64_t steps)
      : model_(std::move(model)),
        path_(std::move(path)),
        prediction_(std::move(prediction)),
        solver_(std::move(solver)),
        steps_(steps) {
    const TimeEnds ends = ode_ends(*path_, prediction_, 1e-3);
    for (std::int64_t k = 0; k <= steps_; ++k) {
      grid_.push_back(ends.begin + (ends.end - ends.begin) * static_cast<double>(k) /
                                       static_cast<double>(steps_));
    }
  }
  const ModelSpec& spec() const override { return model_->spec(); }
  const ParameterSet& parameters() const override { return model_->parameters(); }
  std::vector<std::int64_t> noise_shape() const override { return model_->sample_shape(); }
  std::vector<std::int64_t> sample_shape() const override { return model_->sample_shape(); }
  std::int64_t classes() const override { return model_->classes(); }
  bool is_buffer(const std::string& name) const override { return model_->is_buffer(name); }
  std::unique_ptr<Generator> rebind(ParameterSet parameters) const override {
    return std::make_unique<FlowGenerator>(model_->rebind(std::move(parameters), {}), path_,
                                           prediction_, solver_, steps_);
  }
  at::Tensor generate(const at::Tensor& z, const at::Tensor& labels) const override {
    OdeOptions options;
    options.method = parse_ode_method(solver_.substr(4));
    options.keep_graph = true;
    return solve_ode(*model_, z, grid_, Condition{labels}, options).x;
  }
  std::map<std::string, std::string> metadata() const {
    return {{"tiltflow.path", path_->name()}, {"tiltflow.prediction", prediction_}};
  }
  const VelocityModel& model() const { return *model_; }

 private:
  std::shared_ptr<const VelocityModel> model_;
  std::shared_ptr<const Path> path_;
  std::string prediction_, solver_;
  std::int64_t steps_;
  std::vector<double> grid_;
};

class NoisePredictionGenerator final : public Generator {
 public:
  NoisePredictionGenerator(std::shared_ptr<const VelocityModel> network, OneStep step)
      : network_(std::move(network)), step_(step) {}
  const ModelSpec& spec() const override { return network_->spec(); }
  const ParameterSet& parameters() const override { return network_->parameters(); }
  std::vector<std::int64_t> noise_shape() const override { return network_->sample_shape(); }
  std::vector<std::int64_t> sample_shape() const override { return network_->sample_shape(); }
  std::int64_t classes() const override { return network_->classes(); }
  bool is_buffer(const std::string& name) const override { return network_->is_buffer(name); }
  std::unique_ptr<Generator> rebind(ParameterSet parameters) const override {
    return std::make_unique<NoisePredictionGenerator>(network_->rebind(std::move(parameters), {}),
                                                      step_);
  }
  at::Tensor generate(const at::Tensor& z, const at::Tensor& labels) const override {
    const at::Tensor t =
        at::full({z.size(0)}, static_cast<double>(step_.t), z.options().requires_grad(false));
    return step_.keep * z +
           step_.prediction * network_->velocity(step_.input * z, t, Condition{labels});
  }
  const VelocityModel& model() const { return *network_; }

 private:
  std::shared_ptr<const VelocityModel> network_;
  OneStep step_;
};

}  // namespace

void bind(Fields& f, GeneratorConfig& c) {
  f.path("file", c.file, PathKind::kWeights,
         "one-step generator (GAN, MLP, VAE decoder) or flow model: safetensors or a PyTorch "
         "checkpoint");
  f.value("section", c.section,
          "PyTorch checkpoint: which state dict; empty = the generator, or ema");
  f.table("args", c.args, "constructor arguments that the file does not say");
  f.value("path", c.path, "flow models: interpolation path when the file does not say");
  f.value("prediction", c.prediction,
          "flow models: what the network predicts when the file does not say");
  f.value("solver", c.solver, "flow models: deterministic solver from noise to sample",
          one_of(fixed_step_solvers()));
  f.value("steps", c.steps, "flow models: its steps", at_least_integer(1));
  f.value("schedule", c.schedule,
          "networks that predict noise at whole times (DiT): linear or scaled-linear; one step "
          "instead of a solver");
  f.value("one_step", c.one_step, "with a schedule: euler, ddpm or tcd", one_of(one_step_kinds()));
}

std::unique_ptr<Generator> flow_generator(std::shared_ptr<const VelocityModel> model,
                                          std::shared_ptr<const Path> path,
                                          const std::string& prediction, const std::string& solver,
                                          std::int64_t steps) {
  if (std::find(fixed_step_solvers().begin(), fixed_step_solvers().end(), solver) ==
      fixed_step_solvers().end()) {
    fail(ErrorKind::kConfig, cat("solver '", solver, "' makes no one-step generator"),
         "use " + join(fixed_step_solvers(), ", "));
  }
  return std::make_unique<FlowGenerator>(std::move(model), std::move(path), prediction, solver,
                                         steps);
}

std::unique_ptr<Generator> noise_prediction_generator(std::shared_ptr<const VelocityModel> network,
                                                      const std::string& schedule,
                                                      const std::string& kind) {
  return std::make_unique<NoisePredictionGenerator>(std::move(network),
                                                    one_step(DiscreteSchedule(schedule), kind));
}

std::unique_ptr<Generator> open_generator(const GeneratorConfig& c, ModelRuntime runtime) {
  if (c.file.empty()) {
    fail(ErrorKind::kConfig, "generator.file is missing",
         "a one-step generator, e.g. made by `tiltflow pretrain recipes/pretrain-mnist-gan.toml`");
  }
  const TensorFile file = read_tensors(c.file, c.section);
  if (!generator_family(file.tensors, file.metadata).empty()) {
    return load_generator(c.file, c.args, c.section, runtime.precision);
  }
  FlowModelConfig flow;
  flow.file = c.file;
  flow.weights = c.section;
  flow.path = c.path;
  flow.prediction = c.prediction;
  flow.args = c.args;
  if (!c.schedule.empty()) {
    flow.prediction = "velocity";  // the network's answer as it is
    return noise_prediction_generator(load_flow_model(flow, runtime).model, c.schedule, c.one_step);
  }
  const FlowModel loaded = load_flow_model(flow, runtime);
  return flow_generator(loaded.model, loaded.path, loaded.prediction, c.solver, c.steps);
}

std::unique_ptr<Generator> open_generator_file(GeneratorConfig config,
                                               const std::filesystem::path& file,
                                               const std::string& section, ModelRuntime runtime) {
  config.file = file.string();
  config.section = section;
  return open_generator(config, runtime);
}

void save_any_generator(const std::filesystem::path& file, const Generator& generator,
                        const ParameterSet& parameters) {
  if (const auto* flow = dynamic_cast<const FlowGenerator*>(&generator)) {
    save_velocity_model(file, flow->model(), parameters, flow->metadata());
  } else if (const auto* discrete = dynamic_cast<const NoisePredictionGenerator*>(&generator)) {
    save_velocity_model(file, discrete->model(), parameters, {{"tiltflow.prediction", "noise"}});
  } else {
    save_generator(file, generator, parameters);
  }
}

}  // namespace tiltflow
