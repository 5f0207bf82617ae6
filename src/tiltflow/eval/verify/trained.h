// The real method on exact problems: a small network beside the analytic base, trained by AdjointMatching with AdamW.
#pragma once

#include "tiltflow/eval/verify/problems.h"
#include "tiltflow/finetune/adjoint_matching.h"

namespace tiltflow {

struct TrainedOptions {
  int steps = 40;                  // of the sampler
  std::int64_t iterations = 300, batch = 256, hidden = 64, depth = 2;
  std::int64_t loss_steps = 0;     // 0: all
  double learning_rate = 5e-3, reward_scale = 1, path_weighting = 0;
  std::uint64_t seed = 3;
};

struct TrainedControl {
  Policy policy;
  TransitionTable table;
  double first_loss = 0, last_loss = 0;
};

// Weights are averaged over the last part of training (EMA); `policy.tuned` evaluates the average.
TrainedControl train_control(const ExactProblem& problem, const TrainedOptions& options);

}  // namespace tiltflow
