#include "tiltflow/train/pretraining_run.h"

#include <algorithm>

#include "tiltflow/base/count.h"
#include "tiltflow/base/error.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/log.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/flow/prediction.h"
#include "tiltflow/io/image.h"
#include "tiltflow/io/safetensors.h"
#include "tiltflow/models/model_file.h"
#include "tiltflow/models/precision_choice.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/train/gan_training.h"
#include "tiltflow/train/pretraining.h"

namespace tiltflow {

void bind(Fields& f, DatasetConfig& c) {
  f.value("format", c.format,
          "idx (MNIST files), cifar (binary records), folder (one sub-folder a class), numpy "
          "(arrays arr_0 and arr_1 of an .npz) or latents (a file of `tiltflow encode`)",
          one_of(data_formats()));
  f.path("path", c.path, PathKind::kAll,
         "folder that holds the data, or the file of arrays or latents");
  f.value("size", c.size,
          "crop and resize every picture to its central square of this size; 0: as they are",
          at_least_integer(0));
  f.value("channels", c.channels,
          "grey: every picture to one channel, rgb: to three, auto: three as soon as one picture "
          "is coloured",
          one_of({"auto", "grey", "rgb"}));
  f.value("alpha", c.alpha,
          "folder: what becomes of transparent pixels: drop (their colour stays, as in "
          "torchvision), white or black (composed on it), refuse",
          one_of({"drop", "white", "black", "refuse"}));
  f.value("skip_bad", c.skip_bad,
          "folder: leave out pictures that cannot be read, and say which, instead of refusing the "
          "folder");
}

void bind(Fields& f, PretrainDataConfig& c) {
  bind(f, static_cast<DatasetConfig&>(c));
  f.value("flip", c.flip,
          "mirror half of the pictures left to right, chosen anew in every step; not for digits "
          "and letters");
  f.value(
      "held_out", c.held_out,
      "share of the training pictures kept for validation; 0: the test split, when there is one",
      between(0, 0.5));
}

void bind(Fields& f, PretrainModelConfig& c) {
  f.value("family", c.family, "architecture of the velocity model", one_of({"sit"}));
  f.value("path", c.path, "interpolation path: linear, gvp or vp", one_of(path_names()));
  f.value("prediction", c.prediction, "what the network answers: velocity, noise or score",
          one_of(predictions()));
  f.path("init", c.init, PathKind::kWeights,
         "flow: start from the weights of this model file instead of fresh ones; it may have fewer "
         "blocks");
  f.path("teacher", c.teacher, PathKind::kWeights,
         "flow: learn the velocities of this model at the labels before dropout, in place of "
         "single pairs of noise and picture: targets of less variance");
  f.table("args", c.args, "constructor arguments by their official names");
}

void bind(Fields& f, PretrainConfig& c) {
  f.value("kind", c.kind,
          "flow (velocity model), gan (conditional one-step generator) or classifier (judge)",
          one_of({"flow", "gan", "classifier"}));
  f.value("seed", c.seed, "root of all randomness", any_seed());
  f.value("batch", c.batch, "images per step", at_least_integer(1));
  f.renamed("item", "micro_batch");
  f.value("micro_batch", c.micro_batch, "images per independent piece of work",
          at_least_integer(1));
  f.value("label_dropout", c.label_dropout, "flow: share of labels replaced by the null class",
          between(0, 1));
  f.value("time_sampling", c.time_sampling, "flow: uniform or logit-normal",
          one_of({"uniform", "logit-normal"}));
  f.value("loss_weight", c.loss_weight,
          "flow, noise and score predictions: none, velocity or likelihood",
          one_of({"none", "velocity", "likelihood"}));
  f.value("epsilon", c.epsilon, "flow: training times stay this far inside [0, 1]; -1 = as SiT",
          between(-1, 0.1));
  f.value("noise", c.noise, "classifier: largest deviation of the noise added to inputs",
          at_least(0));
  f.value("shift", c.shift, "classifier: largest random translation in pixels",
          at_least_integer(0));
  f.value("label_smoothing", c.label_smoothing, "classifier: label smoothing", between(0, 0.9));
  f.value("discriminator_steps", c.discriminator_steps,
          "gan: steps of the discriminator per step of the generator; train.steps counts both",
          at_least_integer(1));
  f.value("evaluate_on", c.evaluate_on,
          "classifier: pictures whose accuracy is measured at the end: test (that split must be "
          "there), train (named so) or none",
          one_of({"test", "train", "none"}));
  f.section("data", c.data);
  f.section("model", c.model);
  f.section("evaluation", c.evaluation);
  f.section("compute", c.compute);
  f.section("train", c.train);
}

namespace {

// Weights of model.init. A shallower SiT may start a deeper one: the added blocks begin as the
// identity (adaLN-zero), so the function is unchanged.
void start_from_file(const VelocityModel& model, const PretrainModelConfig& c) {
  std::map<std::string, std::string> args = c.args;
  args.erase("depth");
  const LoadedModel start = load_velocity_model(c.init, args);
  const std::int64_t depth = std::stoll(start.model->spec().args.at("depth"));
  ParameterSet shared;
  for (const auto& [name, tensor] : model.parameters()) {
    const bool added = starts_with(name, "blocks.") && std::stoll(name.substr(7)) >= depth;
    if (!added) shared.add(name, tensor);
  }
  assign(shared, start.model->parameters(), c.init);
  if (shared.size() < model.parameters().size()) {
    log_info(cat(c.init, " has ", counted(depth, "block"), "; the others start as the identity"));
  }
}

// The model of model.teacher. Its path must be the student's, and it must answer velocities.
std::shared_ptr<const VelocityModel> read_teacher(const PretrainModelConfig& c,
                                                  const ModelRuntime& runtime) {
  if (c.prediction != "velocity") {
    fail(ErrorKind::kConfig, "model.teacher needs prediction = \"velocity\"");
  }
  LoadedModel teacher = load_velocity_model(c.teacher, {}, runtime);
  const auto require = [&](const Stated& stated, const std::string& wanted,
                           const std::string& what) {
    if (!stated.problem.empty()) fail(ErrorKind::kConfig, cat(c.teacher, ": ", stated.problem));
    if (!stated.value.empty() && stated.value != wanted) {
      fail(ErrorKind::kConfig, cat("the teacher ", c.teacher, " has ", what, " ", stated.value,
                                   ", the model ", wanted));
    }
  };
  require(teacher.path, c.path, "path");
  require(teacher.prediction, "velocity", "prediction");
  return std::move(teacher.model);
}

// Never the training pictures. Throws kBadFile when there are no others.
ImageDataset test_pictures(const DatasetConfig& data) {
  if (!has_test_split(data)) {
    fail(ErrorKind::kBadFile,
         cat("no test pictures in ", data.path, ": it is not divided into train and test"),
         "make sub-folders train and test (or val) with the classes below; or set evaluate_on = "
         "\"train\" for the accuracy on training pictures, \"none\" for none");
  }
  return read_dataset(data, "test");
}

}  // namespace

PretrainSetup set_up(const PretrainConfig& c) {
  const ModelRuntime runtime = apply(c.compute);
  PretrainSetup s{c, nullptr, {}, {}};
  if (c.kind == "flow") {
    s.model = create_velocity_model({c.model.family, c.model.args},
                                    static_cast<std::uint64_t>(c.seed), runtime);
    if (!c.model.init.empty()) start_from_file(*s.model, c.model);
    if (!c.model.teacher.empty()) s.teacher = read_teacher(c.model, runtime);
  } else if (c.kind == "gan") {
    gan_config_from_args(c.model.args);
  } else {
    classifier_config_from_args(c.model.args);
  }
  if (c.kind != "flow" && !c.model.teacher.empty()) {
    fail(ErrorKind::kConfig, cat("model.teacher is for kind = \"flow\", not ", c.kind));
  }
  if (c.kind != "flow" && c.data.format == "latents") {
    fail(ErrorKind::kConfig, cat("a ", c.kind, " is trained on pictures, not on latents"));
  }
  if (c.data.flip && c.data.format == "latents") {
    fail(ErrorKind::kConfig, "data.flip mirrors pictures, not latents");
  }
  s.data = read_dataset(c.data, "train");
  if (c.kind == "classifier" && c.evaluate_on == "test" && c.data.held_out == 0) {
    s.held_out = with_classes_of(s.data, test_pictures(c.data));
  } else {
    s.held_out = held_out_data(c.data, c.data.held_out, s.data,
                               RandomStreams(static_cast<std::uint64_t>(c.seed)));
  }
  if (c.kind == "flow") require_fitting_data(*s.model, s.teacher.get(), s.data);
  if (c.kind == "gan") require_gan_data(gan_config_from_args(c.model.args), s.data);
  if (c.kind == "classifier") {
    require_fitting_data(classifier_config_from_args(c.model.args), s.data);
  }
  return s;
}

namespace {

// What every kind has: a label, and what the classes of its data say.
TrainHooks hooks_of(const PretrainSetup& s) {
  const std::vector<std::int64_t> counts = class_counts(s.data);
  log_info(cat(s.data.size(), " items to train on (", class_counts_text(counts, s.data.class_names),
               "), ", s.held_out.size(), " held out"));
  if (s.held_out.size() == 0) {
    log_info("no validation: the data have no test split (data.held_out keeps a share of them)");
  }
  TrainHooks hooks;
  hooks.label = "pretrain";
  if (const auto warning = diagnose_class_balance(counts, s.data.class_names)) {
    hooks.warnings.push_back(*warning);
  }
  hooks.facts.loss_falls = s.config.kind != "gan";
  return hooks;
}

using Evaluation =
    std::function<std::map<std::string, double>(std::int64_t step, const ParameterSet& average)>;

// At every evaluation.every steps and at the end, in the first process.
Evaluation when_due(const PretrainConfig& c, const Run& run, Evaluation evaluate) {
  return [every = c.evaluation.every, steps = c.train.steps, writes = run.writes(),
          evaluate = std::move(evaluate)](std::int64_t step, const ParameterSet& average) {
    const bool due = every > 0 && writes && (step % every == 0 || step == steps);
    return due ? evaluate(step, average) : std::map<std::string, double>{};
  };
}

void pretrain_flow(PretrainSetup s, Run& run) {
  const PretrainConfig& c = s.config;
  const RandomStreams streams(static_cast<std::uint64_t>(c.seed));
  const std::shared_ptr<const Path> path = make_path(c.model.path);
  const FlowMatchingOptions options{c.batch,         c.micro_batch,      c.label_dropout,
                                    c.time_sampling, c.model.prediction, c.loss_weight,
                                    c.epsilon,       c.data.flip};
  TrainHooks hooks = hooks_of(s);
  FlowMatchingObjective objective(std::move(s.model), path, std::move(s.data), options,
                                  static_cast<std::uint64_t>(c.seed), s.teacher);
  hooks.evaluate = when_due(c, run, [&](std::int64_t step, const ParameterSet& average) {
    const SwappedWeights swapped(objective.trainable(), average);
    const VelocityModel& model = objective.model();
    const std::shared_ptr<const VelocityField> network(
        &model, [](const VelocityField*) {});  // the objective's
    const at::Tensor picture =
        flow_pictures(network, model, path, c.model.prediction, c.label_dropout > 0,
                      c.evaluation.sampler_steps, streams);
    if (picture.defined()) run.picture("samples", step, picture);
    return flow_validation(model, *path, options, s.held_out, model.classes(), c.evaluation.samples,
                           streams);
  });
  const TrainResult result = train(c.train, objective, run, hooks);
  if (!run.writes()) return;
  ParameterSet all;  // trained weights (averaged) plus buffers
  for (const auto& [name, tensor] : objective.model().parameters()) {
    all.add(name, result.average.contains(name) ? result.average.at(name) : tensor);
  }
  const auto file = run.directory() / "model.safetensors";
  save_velocity_model(file, objective.model(), all,
                      {{"tiltflow.path", c.model.path},
                       {"tiltflow.prediction", c.model.prediction},
                       {"tiltflow.steps", std::to_string(result.steps)}});
  log_info(cat("wrote ", file.string(), " (", counted(all.numel(), "parameter"), ")"));
}

void pretrain_classifier(PretrainSetup s, Run& run) {
  const PretrainConfig& c = s.config;
  const ClassifierConfig config = classifier_config_from_args(c.model.args);
  const ImageDataset training = s.data;
  TrainHooks hooks = hooks_of(s);
  hooks.evaluate = when_due(c, run, [&](std::int64_t, const ParameterSet& average) {
    return classifier_validation(Classifier(config, average), s.held_out, c.evaluation.samples);
  });
  ClassificationObjective objective(
      config, std::move(s.data),
      {c.batch, c.micro_batch, c.noise, c.shift, c.label_smoothing, c.data.flip},
      static_cast<std::uint64_t>(c.seed));
  hooks.note = [](const std::map<std::string, double>& m) {
    return cat("loss ", compact(m.at("loss")), "  accuracy ",
               fixed(100 * m.at("train_accuracy"), 1), " %");
  };
  const TrainResult result = train(c.train, objective, run, hooks);
  if (!run.writes()) return;
  const auto file = run.directory() / "model.safetensors";
  save_classifier(file, config, result.average,
                  {});  // before anything can go wrong with the evaluation
  const bool on_test = c.evaluate_on == "test";
  if (c.evaluate_on == "none" || (on_test && s.held_out.size() == 0)) {
    log_info("wrote " + file.string());
    return;
  }
  const ImageDataset& seen = on_test ? s.held_out : training;
  const double share = accuracy(Classifier(config, result.average), seen);
  save_classifier(
      file, config, result.average,
      {{on_test ? "tiltflow.test_accuracy" : "tiltflow.training_accuracy", fixed(share, 4)}});
  const std::string pictures = on_test ? counted(seen.size(), "held-out image")
                                       : cat("the ", counted(seen.size(), "training image"));
  log_info(
      cat("wrote ", file.string(), "; accuracy on ", pictures, ": ", fixed(100 * share, 2), " %"));
}

void pretrain_gan(PretrainSetup s, Run& run) {
  const PretrainConfig& c = s.config;
  const GanConfig gan = gan_config_from_args(c.model.args);
  const RandomStreams streams(static_cast<std::uint64_t>(c.seed));
  const at::Tensor z = streams.normal(Purpose::kExact, 0, 0, 0, 8 * gan.num_classes, {gan.z_dim});
  const at::Tensor labels =
      at::arange(8 * gan.num_classes, at::kLong).div(8, "floor");  // eight of each class
  TrainHooks hooks = hooks_of(s);
  GanObjective objective(gan, std::move(s.data),
                         {c.batch, c.micro_batch, c.discriminator_steps, c.data.flip},
                         static_cast<std::uint64_t>(c.seed), chosen_precision(c.compute));
  const auto finished = [&](const ParameterSet& average) {
    auto generator = objective.averaged(average);
    if (c.train.average_decay > 0) recalibrate(*generator, streams, 60, c.batch);
    return generator;
  };
  hooks.evaluate = when_due(c, run, [&](std::int64_t step, const ParameterSet& average) {
    const at::NoGradGuard no_grad;
    const auto generator = finished(average);
    if (is_picture(generator->sample_shape())) {
      run.picture("samples", step, image_grid((generator->generate(z, labels) + 1) / 2, 8));
    }
    return gan_validation(objective.discriminator(), *generator, s.held_out, c.evaluation.samples,
                          streams);
  });
  double d = 0;
  double g = 0;
  hooks.note = [&](const std::map<std::string, double>& m) {
    if (m.count("generator_loss")) {
      g = m.at("generator_loss");
    } else {
      d = m.at("discriminator_loss");
    }
    return cat("discriminator ", compact(d, 3), "  generator ", compact(g, 3));
  };
  const TrainResult result = train(c.train, objective, run, hooks);
  if (!run.writes()) return;
  const auto generator = finished(result.average);
  const auto file = run.directory() / "model.safetensors";
  save_generator(file, *generator, generator->parameters(),
                 {{"tiltflow.steps", std::to_string(result.steps)}});
  write_safetensors(run.directory() / "discriminator.safetensors",
                    objective.discriminator().parameters());
  log_info(cat("wrote ", file.string(), " (", counted(generator->parameters().numel(), "number"),
               ") and discriminator.safetensors"));
}

}  // namespace

namespace {

// What the run was trained on, with everything that was skipped, left aside or converted: data.json
// of the run.
void record_data(const ImageDataset& data, const Run& run) {
  if (!run.writes()) return;
  const nlohmann::ordered_json record{{"items", data.size()},
                                      {"shape", data.shape()},
                                      {"classes", data.class_names},
                                      {"notes", data.notes},
                                      {"skipped", data.skipped}};
  write_file_atomic(run.directory() / "data.json",
                    record.dump(1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
}

}  // namespace

void pretrain(PretrainSetup setup, Run& run) {
  record_data(setup.data, run);
  if (setup.config.kind == "flow") {
    pretrain_flow(std::move(setup), run);
  } else if (setup.config.kind == "gan") {
    pretrain_gan(std::move(setup), run);
  } else {
    pretrain_classifier(std::move(setup), run);
  }
}

}  // namespace tiltflow
