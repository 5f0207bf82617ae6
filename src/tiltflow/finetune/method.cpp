#include "tiltflow/finetune/method.h"

#include <algorithm>
#include <cmath>

#include "tiltflow/tensor/aten.h"

namespace tiltflow {

void add_batch_metrics(LossReport& report, const Batch& batch) {
  const double n = static_cast<double>(batch.n);
  report.metrics.add("reward", batch.rewards.sum().item<double>(), n);
  report.metrics.add("reward_square", batch.rewards.square().sum().item<double>(), n);
  if (batch.control_cost.defined()) report.metrics.add("control_cost", batch.control_cost.sum().item<double>(), n);
}

void finish_batch_metrics(std::map<std::string, double>& metrics) {
  metrics["reward_deviation"] = std::sqrt(std::max(0.0, metrics["reward_square"] - metrics["reward"] * metrics["reward"]));
  metrics.erase("reward_square");
}

}  // namespace tiltflow
