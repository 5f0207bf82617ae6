#include "tiltflow/models/flow_model.h"

#include <algorithm>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/flow/prediction.h"
#include "tiltflow/models/product/product_model.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

class PredictionModel final : public VelocityModel {
 public:
  PredictionModel(std::shared_ptr<const VelocityModel> network, std::shared_ptr<const Path> path,
                  std::string prediction)
      : network_(std::move(network)),
        path_(std::move(path)),
        prediction_(std::move(prediction)),
        field_(network_, path_, prediction_) {}
  at::Tensor velocity(const at::Tensor& x, const at::Tensor& t,
                      const Condition& condition) const override {
    return field_.velocity(x, t, condition);
  }
  const ModelSpec& spec() const override { return network_->spec(); }
  const ParameterSet& parameters() const override { return network_->parameters(); }
  std::vector<std::int64_t> sample_shape() const override { return network_->sample_shape(); }
  std::int64_t classes() const override { return network_->classes(); }
  std::vector<std::string> linear_layers() const override { return network_->linear_layers(); }
  bool is_buffer(const std::string& name) const override { return network_->is_buffer(name); }
  std::unique_ptr<VelocityModel> rebind(ParameterSet parameters,
                                        AdapterSet adapters) const override {
    return std::make_unique<PredictionModel>(
        network_->rebind(std::move(parameters), std::move(adapters)), path_, prediction_);
  }

 private:
  std::shared_ptr<const VelocityModel> network_;
  std::shared_ptr<const Path> path_;
  std::string prediction_;
  PredictionField field_;
};

Check<std::string> empty_or(std::vector<std::string> names) {
  return [names](const std::string& v) { return v.empty() ? std::string() : one_of(names)(v); };
}

// What was asked for, else what the file says, else `otherwise`. Throws kBadFile when the file is
// needed and not understood.
std::string decide(const std::string& given, const Stated& stated, const std::string& otherwise,
                   const std::string& file, const std::string& hint) {
  if (!given.empty()) return given;
  if (!stated.problem.empty()) fail(ErrorKind::kBadFile, cat(file, ": ", stated.problem), hint);
  return stated.value.empty() ? otherwise : stated.value;
}

}  // namespace

void bind(Fields& f, FlowModelConfig& c) {
  f.path("file", c.file, PathKind::kWeights,
         "base model: safetensors, sharded safetensors or a PyTorch checkpoint");
  f.value("family", c.family,
          "instead of a file: gaussian-mixture, the exact flow of the mixture in args (weights, "
          "means, deviations)",
          empty_or({"gaussian-mixture"}));
  f.path("agents", c.agents, PathKind::kWeights,
         "instead of a file: model files that are steered together; their samples are stacked");
  f.value("aggregate", c.aggregate,
          "what rewards see of several agents: mean, sum or max of their samples; empty = what the "
          "file says, else mean",
          empty_or(aggregates()));
  f.value("weights", c.weights,
          "PyTorch checkpoint: which state dict, e.g. ema or model; empty = ema when there is one");
  f.value("path", c.path,
          "interpolation path: linear, gvp, vp; empty = what the file says, else linear",
          empty_or(path_names()));
  f.value("prediction", c.prediction,
          "what the network predicts: velocity, noise, score; empty = what the file says, else "
          "velocity",
          empty_or(predictions()));
  f.table("args", c.args, "constructor arguments that override what the file says, e.g. num_heads");
}

namespace {

// Models that are steered together: their samples are stacked.
FlowModel load_agents(const FlowModelConfig& config, ModelRuntime runtime, at::ScalarType dtype) {
  if (!config.file.empty() || !config.family.empty()) {
    fail(ErrorKind::kConfig, "model.agents beside model.file or model.family: give one of them");
  }
  FlowModel out;
  std::vector<std::shared_ptr<const VelocityModel>> parts;
  for (const std::string& file : config.agents) {
    FlowModelConfig one = config;
    one.agents.clear();
    one.file = file;
    const FlowModel part = load_flow_model(one, runtime, dtype);
    if (part.prediction != "velocity") {
      fail(ErrorKind::kConfig,
           cat(file, " predicts ", part.prediction, ": agents must predict velocities"));
    }
    if (out.path && out.path->name() != part.path->name()) {
      fail(ErrorKind::kConfig,
           cat("model.agents: ", config.agents[0], " has the ", out.path->name(), " path, ", file,
               " the ", part.path->name(), " path"));
    }
    out.path = part.path;
    out.prediction = part.prediction;
    parts.push_back(part.model);
  }
  out.model = std::make_shared<ProductModel>(std::move(parts));
  if (!config.aggregate.empty()) out.aggregate = config.aggregate;
  return out;
}

// A model that needs no file.
FlowModel create_family(const FlowModelConfig& config, ModelRuntime runtime) {
  if (!config.file.empty()) {
    fail(ErrorKind::kConfig, "model.file and model.family: give one of them");
  }
  if (!config.prediction.empty() && config.prediction != "velocity") {
    fail(ErrorKind::kConfig, cat("model.prediction = \"", config.prediction,
                                 "\": a Gaussian mixture answers with velocities"));
  }
  ModelSpec spec{config.family, config.args};
  spec.args["path"] = config.path.empty() ? "linear" : config.path;
  return {create_velocity_model(spec, 0, runtime), make_path(spec.args["path"]), "velocity",
          "mean"};
}

std::string aggregate_of(const FlowModelConfig& config, const LoadedModel& loaded,
                         const std::string& usual) {
  std::string out = usual;
  if (const auto said = loaded.metadata.find("tiltflow.aggregate"); said != loaded.metadata.end()) {
    out = said->second;
  }
  if (!config.aggregate.empty()) out = config.aggregate;
  if (std::find(aggregates().begin(), aggregates().end(), out) == aggregates().end()) {
    fail(ErrorKind::kBadFile, cat(config.file, ": tiltflow.aggregate = '", out, "' is unknown"),
         "known: " + join(aggregates(), ", "));
  }
  return out;
}

FlowModel own_flow_model(const FlowModelConfig& config, const ModelRuntime& runtime) {
  if (!config.file.empty() || !config.family.empty() || !config.agents.empty()) {
    fail(ErrorKind::kConfig,
         "the program's own model beside model.file, model.family or model.agents: give one");
  }
  FlowModel out;
  out.path = make_path(config.path.empty() ? "linear" : config.path);
  out.prediction = config.prediction.empty() ? "velocity" : config.prediction;
  out.model = with_prediction(config.own(runtime), out.path, out.prediction);
  return out;
}

}  // namespace

FlowModel load_flow_model(const FlowModelConfig& config, ModelRuntime runtime,
                          at::ScalarType dtype) {
  if (config.own) return own_flow_model(config, runtime);
  if (!config.agents.empty()) return load_agents(config, runtime, dtype);
  if (!config.family.empty()) return create_family(config, runtime);
  if (config.file.empty()) {
    fail(ErrorKind::kConfig, "model.file is missing",
         "the base model, e.g. model.file = \"assets/mnist-sit.safetensors\"");
  }
  LoadedModel loaded =
      load_velocity_model(config.file, config.args, runtime, dtype, config.weights);
  FlowModel out;
  out.path = make_path(decide(config.path, loaded.path, "linear", config.file,
                              cat("decide with --path or model.path: ", join(path_names(), ", "))));
  const auto own_path =
      loaded.model->spec().args.find("path");  // of models that are exact on one path only
  if (own_path != loaded.model->spec().args.end() && own_path->second != out.path->name()) {
    fail(ErrorKind::kConfig, cat("model.path = \"", out.path->name(), "\": ", config.file,
                                 " belongs to the ", own_path->second, " path"));
  }
  out.prediction =
      decide(config.prediction, loaded.prediction, "velocity", config.file,
             cat("decide with --prediction or model.prediction: ", join(predictions(), ", ")));
  out.aggregate = aggregate_of(config, loaded, out.aggregate);
  out.model = with_prediction(std::move(loaded.model), out.path, out.prediction);
  return out;
}

std::map<std::string, std::string> FlowModel::metadata() const {
  std::map<std::string, std::string> out{{"tiltflow.path", path->name()},
                                         {"tiltflow.prediction", prediction}};
  if (agents_of(model->spec()) > 1) out["tiltflow.aggregate"] = aggregate;
  return out;
}

std::unique_ptr<VelocityModel> with_prediction(std::unique_ptr<VelocityModel> network,
                                               std::shared_ptr<const Path> path,
                                               const std::string& prediction) {
  if (prediction == "velocity") return network;
  return std::make_unique<PredictionModel>(std::move(network), std::move(path), prediction);
}

}  // namespace tiltflow
