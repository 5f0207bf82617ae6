// Fine-tuning runs that cost the same: the number of steps that a budget pays for, and runs that
// are kept when they are finished.
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "tiltflow/train/finetuning.h"

namespace tiltflow {

struct Budget {
  double evaluations = 0;  // network evaluations of a run; 0 = not limited
  double seconds = 0;  // of training; 0 = not limited. Measured on a few steps, so that it holds
                       // for this machine in its present state only
  bool any() const { return evaluations > 0 || seconds > 0; }
};

struct PlannedRun {
  FinetuneConfig config;
  ResolvedConfig resolved;  // its document, and the files it reads
  double evaluations =
      0;  // of a step, over the whole batch; 0 when there is no budget of evaluations
};
// The configuration with train.steps as the budget pays for them (the smaller number when both are
// given). A run already begun in `folder` keeps the steps it began with when the budget is in
// seconds. Throws kConfig when not even one step is paid for.
PlannedRun plan_run(const std::filesystem::path& config, const std::vector<Override>& overrides,
                    const Budget& budget, const std::filesystem::path& folder);

// Trains unless `folder` holds the finished run of this configuration; continues one that was
// stopped. Returns whether it had to.
bool train_unless_there(const PlannedRun& run, const std::filesystem::path& folder);

// Finished ones answer "done" or "there already".
bool is_done(const std::string& status);
// What `work` answers, or "failed: ..." with a warning: one run is lost, not those after it.
// kStopped goes through.
std::string status_of(const std::string& name, const std::function<std::string()>& work);

}  // namespace tiltflow
