#include "tiltflow/eval/run_check.h"

#include <algorithm>
#include <map>
#include <optional>

#include "tiltflow/base/error.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/folder_claim.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/nn/machine_choices.h"
#include "tiltflow/report/run_report.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {

namespace {

// The tuned model is compared with the base, under the reward and decoder, that it was trained
// with.
void require_files_of_training(const std::filesystem::path& run,
                               const std::vector<InputPath>& inputs) {
  const Inputs before = read_inputs(run / "inputs.json");
  std::vector<InputPath> same;  // not those that --set names anew
  for (const InputPath& one : inputs) {
    const auto found = before.find(one.name);
    const bool of_training = !find_free(finetune_keys(), one.name) && one.name != "policy.start";
    if (of_training && found != before.end() && found->second.path == one.path) same.push_back(one);
  }
  require_same_inputs(before, fingerprints_of(same), cat("the run in ", run.string()),
                      "put the files back, or train in another folder; --set KEY=FILE evaluates "
                      "with another file knowingly");
}

}  // namespace

void require_finished_run(const std::filesystem::path& run) {
  if (!std::filesystem::exists(run / "config.toml")) {
    fail(ErrorKind::kBadFile, cat(run.string(), " is not a run directory"),
         "give the folder that `tiltflow finetune` wrote");
  }
  if (!std::filesystem::exists(run / "model.safetensors")) {
    fail(ErrorKind::kBadFile,
         cat("the run in ", run.string(), " is not finished: it has no model.safetensors"),
         "continue it with `tiltflow finetune` and --resume; `tiltflow report` shows it as it is");
  }
}

FinishedRun load_finished_run(const std::filesystem::path& run,
                              const std::vector<Override>& changes) {
  require_finished_run(run);
  ResolvedConfig resolved;
  const FinetuneConfig config =
      load_config<FinetuneConfig>(run / "config.toml", changes, &resolved);
  require_files_of_training(run, resolved.inputs);
  follow_choices(choices_in(run));
  FlowModelConfig file;
  file.file = (run / "model.safetensors").string();
  try {
    return {set_up(config), load_flow_model(file, apply(config.compute))};
  } catch (const Error& error) {
    fail(error.kind(), cat("run ", run.string(), ", by its config.toml: ", error.what()),
         error.hint());
  }
}

std::vector<std::string> changed_keys(const std::filesystem::path& run,
                                      const std::vector<Override>& changes) {
  const auto resolved = [&](const std::vector<Override>& of) {
    Fields fields(run / "config.toml", of);
    FinetuneConfig config;
    bind(fields, config);
    fields.finish();
    std::map<std::string, std::string> out;
    for (const ResolvedValue& v : fields.resolved()) out[v.key] = v.value;
    return out;
  };
  const std::map<std::string, std::string> own = resolved({});
  std::vector<std::string> out;
  for (const auto& [key, value] : resolved(changes)) {
    const auto before = own.find(key);
    if (before == own.end() || before->second != value) {
      out.push_back(
          cat(key, " = ", value, before == own.end() ? "" : cat(" instead of ", before->second)));
    }
  }
  return out;
}

bool keep_the_numbers(const std::vector<Override>& changes) {
  return std::all_of(changes.begin(), changes.end(), [](const Override& change) {
    return starts_with(change.text, "compute.workers=") ||
           starts_with(change.text, "compute.threads=");
  });
}

TiltedCheck check_run(const std::filesystem::path& run, const std::vector<Override>& changes) {
  const auto [setup, tuned] = load_finished_run(run, changes);
  std::optional<FolderClaim> claim;
  const bool own = keep_the_numbers(changes);
  if (own) claim.emplace(run);
  const FinetuneConfig& config = setup.config;
  TiltedCheckOptions options;
  options.base_samples = config.check.base_samples;
  options.tuned_samples = config.check.tuned_samples;
  options.standard_errors = config.check.standard_errors;
  options.allowance = config.check.allowance;
  options.per_condition = config.check.per_condition;
  options.conditions = config.check.conditions;
  if (!config.check.judge.empty()) options.judge = load_classifier(config.check.judge);
  options.samplers.push_back(setup.config.sampler);
  if (!config.check.ode.empty()) {
    SamplerConfig ode = setup.config.sampler;
    ode.name = config.check.ode;
    ode.steps = config.check.ode_steps;
    options.samplers.push_back(ode);
  }
  const TiltedCheck check =
      check_tilted_law(*setup.for_check(setup.flow.model), *setup.for_check(tuned.model),
                       *setup.flow.path, *setup.reward, setup.flow.model->sample_shape(),
                       setup.streams, setup.labels_at(RunKey::kLawCheck), options);
  if (!own) return check;
  write_file_atomic(run / "check.json", to_json(check).dump(1) + "\n");
  write_report(run);
  return check;
}

}  // namespace tiltflow
