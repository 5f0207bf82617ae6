// Weights of a batch of paths, normalised, and tempered when they would leave a trust region: w^tau
// with the largest tau in [0, 1] whose Kullback- Leibler divergence from equal weights is within
// the budget (the escort weights of TRI-TSMC and of trust-region SOC matching). At the tilted law
// all weights are equal, so the fixed point does not move; on the way a step goes no further than
// the paths at hand can show.
#pragma once

#include <ATen/core/Tensor.h>

#include "tiltflow/tensor/loss_report.h"

namespace tiltflow {

struct PathWeights {
  at::Tensor weights;  // [n] double, sum 1
  double tau = 1;
};
// `budget` in nats; 0 = none (tau = 1).
PathWeights path_weights(const at::Tensor& log_weights, double budget);
// path_ess (of n) and tempered, the share of batches that were.
void add_weight_metrics(LossReport& report, const PathWeights& weights);

}  // namespace tiltflow
