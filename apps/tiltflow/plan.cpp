#include "plan.h"

#include <iostream>

#include "tiltflow/base/count.h"
#include "tiltflow/base/log.h"
#include "tiltflow/base/problems.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/train/onestep_check.h"
#include "tiltflow/train/pretraining_check.h"
#include "tiltflow/train/run.h"
#include "tiltflow/train/start_check.h"

namespace tiltflow::app {
namespace {

std::string destination(const std::filesystem::path& out) {
  return out.empty() ? std::string() : " -> " + out.string();
}

// `out` empty: nothing is to be written.
void check_folder(Problems& problems, const std::filesystem::path& out, double bytes,
                  const RunStart& start) {
  if (out.empty()) return;
  problems.check([&] { require_startable(out, start); });
  problems.check([&] { check_output_folder(out, bytes); });
}

}  // namespace

RecipeKind kind_of_recipe(const std::string& file, const std::vector<Override>& changes) {
  const Fields fields(file, changes);
  if (fields.has("config")) return RecipeKind::kComparison;
  if (fields.has("generator")) return RecipeKind::kOneStep;
  return fields.has("kind") ? RecipeKind::kPretraining : RecipeKind::kFinetuning;
}

void print_plan(const FinetuneSetup& s, const std::filesystem::path& out, const RunStart& start) {
  Problems problems;
  problems.check([&] { check_start(s); });
  check_folder(problems, out, output_bytes(s), start);
  problems.raise();
  const Policy policy = make_policy(s.flow, s.config.policy, 0);
  const VelocityModel& model = *s.flow.model;
  const double weights = model.parameters().bytes();
  const double trained = policy.trainable.bytes();
  log_info(cat("model ", s.config.model.file, s.config.model.file.empty() ? "" : ": ",
               model.spec().family, ", ", counted(model.parameters().numel(), "parameter"), " (",
               format_bytes(weights), "), samples ", shape_text(model.sample_shape())));
  log_info(cat("policy ", s.config.policy.kind, ": ", policy.trainable.numel(),
               " trainable; weights, gradients, AdamW and average about ",
               format_bytes(weights + 5 * trained)));
  log_info(cat("reward ", s.reward->reward().info().name, s.reward_gradient ? "" : " (no gradient)",
               "; labels ", s.config.labels.kind));
  log_info(cat("sampler ", s.table.name, " on the ", s.flow.path->name(), " path, ",
               counted(s.table.size(), "step"), "; method ", s.config.method.name, ", ",
               compact(make_method(s.config.method)->training_calls(s.table)),
               " evaluations with a graph per sample and step"));
  log_info(cat(counted(s.config.train.steps, "step"), " of ",
               counted(s.config.batch, "trajectory", "trajectories"), destination(out)));
}

void print_plan(PretrainSetup s, const std::filesystem::path& out, const RunStart& start) {
  const PretrainConfig config = s.config;
  const std::string model = s.model ? cat(s.model->spec().family, " with ",
                                          counted(s.model->parameters().numel(), "parameter"))
                                    : config.kind;
  const std::int64_t images = s.data.size();
  const double bytes = s.model ? 4 * static_cast<double>(config.train.keep_checkpoints + 2) *
                                     s.model->parameters().bytes()
                               : 0;
  Problems problems;
  problems.check([&] { check_start(std::move(s)); });
  check_folder(problems, out, bytes, start);
  problems.raise();
  log_info(model);
  log_info(cat(counted(images, "image"), "; ", counted(config.train.steps, "step"), " of ",
               config.batch, destination(out)));
}

void print_plan(const OneStepConfig& config) {
  for (const std::string& line : check_start(config)) log_info(line);
}

void print_plan(const std::vector<ComparedRun>& runs) {
  for (const ComparedRun& run : runs) std::cout << run.folder << "\n";
}

}  // namespace tiltflow::app
