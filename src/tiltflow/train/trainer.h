// The only training loop: items in parallel, gradients added in a fixed order, AdamW, averaged
// weights, metrics, checkpoints, signals. Bit-exact when resumed on the same machine.
#pragma once

#include <functional>
#include <string>

#include "tiltflow/train/objective.h"
#include "tiltflow/train/optimizer.h"
#include "tiltflow/train/run.h"
#include "tiltflow/train/watch.h"

namespace tiltflow {

struct TrainConfig {
  std::int64_t steps = 100;
  double average_decay = 0;  // EMA of the weights; 0: none
  std::int64_t checkpoint_every = 50;
  std::int64_t keep_checkpoints = 2;
  std::vector<std::string> stop_when;  // train/stop_condition
  OptimizerConfig optimizer;
};
void bind(Fields& f, TrainConfig& c);

struct TrainResult {
  ParameterSet weights;  // raw
  ParameterSet average;  // averaged, or the raw ones when average_decay = 0
  std::int64_t steps = 0;
};

// Called after each step with averaged weights NOT yet swapped in; `average` lets hooks do that.
struct TrainHooks {
  std::string label = "training";
  RunFacts facts;                    // what warnings are measured against
  std::vector<RunWarning> warnings;  // said when a run begins
  std::function<std::map<std::string, double>(std::int64_t step, const ParameterSet& average)>
      evaluate;  // figures to log of this step; may be none
  std::function<std::string(const std::map<std::string, double>&)>
      note;  // text beside the progress bar
  std::function<void(std::int64_t step, const ParameterSet& average)>
      after_step;              // pictures, evaluations
  bool changes_state = false;  // after_step changes what Objective::state answers
  bool lasting = true;         // false: nobody continues this run, and a stop saves nothing
};

// Continues from the run's newest checkpoint. A stop (base/signals) ends the step or the evaluation
// that is being computed; the last whole step is saved (of lasting runs), kStopped thrown; the same
// when another process of the world is lost, whose error then goes on. Throws kNonFinite when the
// loss or a gradient is not finite (the last checkpoint stays), kDiverged when a condition of
// stop_when is met (the state and the checkpoints before it stay).
TrainResult train(const TrainConfig& config, Objective& objective, Run& run,
                  const TrainHooks& hooks);

}  // namespace tiltflow
