#include "tiltflow/finetune/method.h"

#include <algorithm>
#include <cmath>

#include "tiltflow/tensor/aten.h"

namespace tiltflow {

std::vector<at::Tensor> velocities_along(const FinetuneContext& context, const Batch& batch) {
  const std::size_t steps = context.table.steps.size();
  const std::vector<at::Tensor> states(batch.states.begin(), batch.states.begin() + static_cast<std::ptrdiff_t>(steps));
  std::vector<at::Tensor> times, labels;
  for (std::size_t k = 0; k < steps; ++k) {
    times.push_back(time_tensor(context.table.steps[k].t, states[k]));
    if (batch.labels.defined()) labels.push_back(batch.labels);
  }
  const Condition condition{labels.empty() ? at::Tensor() : at::cat(labels)};
  return context.policy.tuned->velocity(at::cat(states), at::cat(times), condition).split_with_sizes(std::vector<std::int64_t>(steps, batch.n));
}

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
