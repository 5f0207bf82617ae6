#include "tiltflow/eval/budget.h"

#include <algorithm>
#include <cmath>

#include "tiltflow/base/error.h"
#include "tiltflow/base/log.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/json_lines.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

// Seconds of one optimiser step, from a short run in a folder of its own: the mean over its steps
// but the first.
double measure_seconds(const std::filesystem::path& config, std::vector<Override> overrides,
                       const std::filesystem::path& folder) {
  constexpr int kSteps = 5;
  for (const char* shorter :
       {"evaluation.every=0", "evaluation.base_samples=16", "train.warmup=0"}) {
    overrides.emplace_back(shorter);
  }
  overrides.emplace_back(cat("train.steps=", kSteps));
  std::string resolved;
  const FinetuneSetup setup = set_up(load_config<FinetuneConfig>(config, overrides, &resolved));
  std::filesystem::remove_all(folder);
  {
    Run run(folder, resolved, /*resume=*/false);
    finetune(setup, run);
  }
  double sum = 0;
  double count = 0;
  for (const auto& line : read_json_lines(folder / "metrics.jsonl")) {
    if (line.contains("seconds") && line.value("step", 0) > 1) {
      sum += number_from_json(line["seconds"]);
      count += 1;
    }
  }
  std::filesystem::remove_all(folder);
  return sum / std::max(1.0, count);
}

}  // namespace

PlannedRun plan_run(const std::filesystem::path& config, const std::vector<Override>& overrides,
                    const Budget& budget, const std::filesystem::path& folder) {
  PlannedRun out;
  out.config = load_config<FinetuneConfig>(config, overrides, &out.resolved);
  if (!budget.any()) return out;
  double steps = HUGE_VAL;
  if (budget.evaluations > 0) {
    out.evaluations =
        measure_evaluations(set_up(out.config)) * static_cast<double>(out.config.batch);
    steps = budget.evaluations / out.evaluations;
    if (steps < 1) {
      fail(ErrorKind::kConfig,
           cat("a step takes ", compact(out.evaluations),
               " network evaluations, more than the budget of ", compact(budget.evaluations)));
    }
  }
  if (budget.seconds > 0) {
    if (std::filesystem::exists(folder / "config.toml")) {
      steps = std::min(
          steps,
          static_cast<double>(load_config<FinetuneConfig>(folder / "config.toml", {}).train.steps));
    } else {
      std::filesystem::path probe = folder;
      probe += ".probe";
      const double each = measure_seconds(config, overrides, probe);
      if (!(each <= budget.seconds)) {
        fail(ErrorKind::kConfig, cat("a step takes ", compact(each), " s, more than the budget of ",
                                     compact(budget.seconds), " s"));
      }
      steps = std::min(steps, budget.seconds / each);
    }
  }
  std::vector<Override> with_steps = overrides;
  with_steps.emplace_back(cat("train.steps=", static_cast<std::int64_t>(steps)), "the budget");
  out.config = load_config<FinetuneConfig>(config, with_steps, &out.resolved);
  return out;
}

namespace {

// Whether the finished run in `folder` is the one that `start` describes. Its check is forgotten
// when [check] has changed since.
bool is_finished(const std::filesystem::path& folder, const RunStart& start) {
  const auto of_check = [](const std::string& key) { return starts_with(key, "check."); };
  const StoredStart stored = stored_start(folder);
  const std::vector<KeyChange> changes = require_same_start(stored, start);
  if (std::any_of(changes.begin(), changes.end(),
                  [](const KeyChange& change) { return change.key == "train.steps"; })) {
    return false;
  }
  Inputs judges;
  for (const auto& [name, fingerprint] : start.inputs) {
    if (of_check(name)) judges[name] = fingerprint;
  }
  const bool other_judge = !changed_inputs(read_inputs(stored.inputs), judges).empty();
  if (other_judge || std::any_of(changes.begin(), changes.end(),
                                 [&](const KeyChange& change) { return of_check(change.key); })) {
    std::filesystem::remove(folder / "check.json");
  }
  store_start(stored, start, changes);
  return true;
}

}  // namespace

bool train_unless_there(const PlannedRun& run, const std::filesystem::path& folder) {
  const RunStart start{run.resolved.toml, read_inputs_of(run.resolved.inputs, finetune_keys()),
                       /*resume=*/true,   false,
                       finetune_keys(),   reread_config<FinetuneConfig>};
  if (std::filesystem::exists(folder / "model.safetensors") && is_finished(folder, start)) {
    return false;
  }
  const FinetuneSetup setup = set_up(run.config);
  Run directory(folder, start);
  finetune(setup, directory);
  return true;
}

bool is_done(const std::string& status) { return status == "done" || status == "there already"; }

std::string status_of(const std::string& name, const std::function<std::string()>& work) {
  std::string reason;
  try {
    return work();
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::kStopped) throw;
    reason = error.what();
  } catch (const std::exception& error) {  // out of memory, libtorch
    reason = error.what();
    reason = reason.substr(0, reason.find('\n'));
  }
  log_warn(cat(name, ": ", reason));
  return "failed: " + reason;
}

}  // namespace tiltflow
