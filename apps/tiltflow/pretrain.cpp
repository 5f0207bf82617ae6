// tiltflow pretrain: trains a base velocity model by flow matching, or the judge, from labelled images.
#include "tiltflow/base/error.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/log.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/models/model_file.h"
#include "tiltflow/models/runtime_config.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/tensor/parallel.h"
#include "tiltflow/train/pretraining.h"
#include "tiltflow/train/trainer.h"
#include "verbs.h"

namespace tiltflow::app {
namespace {

struct DataConfig {
  std::string format = "idx", path = "data/mnist";
};
void bind(Fields& f, DataConfig& c) {
  f.value("format", c.format, "idx (MNIST files), cifar (binary records) or folder (one sub-folder a class)", one_of({"idx", "cifar", "folder"}));
  f.value("path", c.path, "folder that holds the data");
}

struct ModelConfig {
  std::string family = "sit", path = "linear", init;
  std::map<std::string, std::string> args;
};
void bind(Fields& f, ModelConfig& c) {
  f.value("family", c.family, "architecture of the velocity model", one_of({"sit"}));
  f.value("path", c.path, "interpolation path: linear, gvp or vp", one_of(path_names()));
  f.value("init", c.init, "flow: start from the weights of this model file instead of fresh ones");
  f.table("args", c.args, "constructor arguments by their official names");
}

struct PretrainConfig {
  std::string kind = "flow";
  std::int64_t seed = 0, batch = 128, item = 32;
  double label_dropout = 0.1;
  std::string time_sampling = "uniform";
  double noise = 0.3;
  std::int64_t shift = 2;
  double label_smoothing = 0;
  DataConfig data;
  ModelConfig model;
  ComputeConfig compute;
  TrainConfig train;
};
void bind(Fields& f, PretrainConfig& c) {
  f.value("kind", c.kind, "flow (velocity model) or classifier (judge)", one_of({"flow", "classifier"}));
  f.value("seed", c.seed, "root of all randomness", at_least_integer(0));
  f.value("batch", c.batch, "images per step", at_least_integer(1));
  f.value("item", c.item, "images per independent piece of work", at_least_integer(1));
  f.value("label_dropout", c.label_dropout, "flow: share of labels replaced by the null class", between(0, 1));
  f.value("time_sampling", c.time_sampling, "flow: uniform or logit-normal", one_of({"uniform", "logit-normal"}));
  f.value("noise", c.noise, "classifier: largest deviation of the noise added to inputs", at_least(0));
  f.value("shift", c.shift, "classifier: largest random translation in pixels", at_least_integer(0));
  f.value("label_smoothing", c.label_smoothing, "classifier: label smoothing", between(0, 0.9));
  f.section("data", c.data);
  f.section("model", c.model);
  f.section("compute", c.compute);
  f.section("train", c.train);
}

void pretrain_flow(const PretrainConfig& c, Run& run, ModelRuntime runtime) {
  auto model = create_velocity_model({c.model.family, c.model.args}, static_cast<std::uint64_t>(c.seed), runtime);
  if (!c.model.init.empty()) assign(model->parameters(), load_velocity_model(c.model.init, c.model.args).model->parameters(), c.model.init);
  FlowMatchingObjective objective(std::move(model), make_path(c.model.path), read_dataset(c.data.format, c.data.path, "train"),
                                  {c.batch, c.item, c.label_dropout, c.time_sampling}, static_cast<std::uint64_t>(c.seed));
  TrainHooks hooks;
  hooks.label = "pretrain";
  const TrainResult result = train(c.train, objective, run, hooks);
  ParameterSet all;  // trained weights (averaged) plus buffers
  for (const auto& [name, tensor] : objective.model().parameters()) all.add(name, result.average.contains(name) ? result.average.at(name) : tensor);
  const auto file = run.directory() / "model.safetensors";
  save_velocity_model(file, objective.model(), all, {{"tiltflow.path", c.model.path}, {"tiltflow.steps", std::to_string(result.steps)}});
  log_info(cat("wrote ", file.string(), " (", all.numel(), " parameters)"));
}

void pretrain_classifier(const PretrainConfig& c, Run& run) {
  ClassificationObjective objective(classifier_config_from_args(c.model.args), read_dataset(c.data.format, c.data.path, "train"),
                                    {c.batch, c.item, c.noise, c.shift, c.label_smoothing}, static_cast<std::uint64_t>(c.seed));
  TrainHooks hooks;
  hooks.label = "pretrain";
  hooks.note = [](const std::map<std::string, double>& m) { return cat("loss ", compact(m.at("loss")), "  accuracy ", fixed(100 * m.at("train_accuracy"), 1), " %"); };
  const TrainResult result = train(c.train, objective, run, hooks);
  const ImageDataset held_out = read_dataset(c.data.format, c.data.path, "test");
  const double test_accuracy = accuracy(Classifier(objective.classifier().config(), result.average), held_out);
  const auto file = run.directory() / "model.safetensors";
  save_classifier(file, objective.classifier().config(), result.average, {{"tiltflow.test_accuracy", fixed(test_accuracy, 4)}});
  log_info(cat("wrote ", file.string(), "; accuracy on ", held_out.size(), " held-out images: ", fixed(100 * test_accuracy, 2), " %"));
}

}  // namespace

void add_pretrain(CLI::App& program, Action& action) {
  auto* verb = program.add_subcommand("pretrain", "train a base model (flow matching) or a judge (classifier) on images");
  auto options = std::make_shared<ConfigOptions>();
  add_config_options(*verb, *options);
  verb->footer("Example:\n  tiltflow pretrain recipes/pretrain-mnist.toml --set data.path=/data/mnist");
  verb->callback([=, &action] {
    action = [options] {
      std::string resolved;
      const PretrainConfig config = load_config<PretrainConfig>(options->file, options->set, &resolved);
      const ModelRuntime runtime = apply(config.compute);
      const std::filesystem::path out = options->out.empty() ? std::filesystem::path("runs") / std::filesystem::path(options->file).stem() : std::filesystem::path(options->out);
      if (options->dry_run) {
        if (config.kind == "flow") log_info(cat(create_velocity_model({config.model.family, config.model.args}, 0, runtime)->parameters().numel(), " parameters, ", config.train.steps, " steps of ", config.batch, " images -> ", out.string()));
        return 0;
      }
      Run run(out, resolved, options->resume);
      if (config.kind == "flow") pretrain_flow(config, run, runtime);
      else pretrain_classifier(config, run);
      return 0;
    };
  });
}

}  // namespace tiltflow::app
