// The real methods on exact problems: a small network beside the analytic base, trained with AdamW.
#pragma once

#include "tiltflow/finetune/methods.h"
#include "tiltflow/train/mode_preservation.h"
#include "tiltflow/verify/problems.h"

namespace tiltflow {

struct TrainedOptions {
  int steps = 40;  // of the sampler
  std::int64_t iterations = 300;
  std::int64_t batch = 256;
  std::int64_t hidden = 64;
  std::int64_t depth = 2;
  std::int64_t loss_steps = 0;  // 0: all
  std::int64_t adjoint_stride = 1;
  double learning_rate = 5e-3;
  double reward_scale = 1;
  double path_weighting = 0;
  ModesConfig modes;
  MethodConfig
      method;  // Adjoint Matching takes loss_steps, path_weighting and adjoint_stride from above
  std::uint64_t seed = 3;
};

using LabelsOfStep = std::function<LabelSource(std::int64_t step)>;
// Any policy, labels and table. Weights are averaged over the last part of training (EMA); the
// average is left in `policy.trainable`. Returns the first and the last loss.
std::pair<double, double> train_policy(const Policy& policy, const StateReward& reward,
                                       const Path& path, const TransitionTable& table,
                                       const LabelsOfStep& labels_of, std::int64_t dimension,
                                       double log_z, const TrainedOptions& options);

struct TrainedControl {
  Policy policy;
  TransitionTable table;
  double first_loss = 0;
  double last_loss = 0;
};

// A small MLP beside the analytic base.
TrainedControl train_control(const ExactProblem& problem, const TrainedOptions& options);

}  // namespace tiltflow
