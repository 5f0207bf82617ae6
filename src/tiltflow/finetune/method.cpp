#include "tiltflow/finetune/method.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "tiltflow/tensor/aten.h"

namespace tiltflow {

std::vector<std::int64_t> all_steps(const TransitionTable& table) {
  std::vector<std::int64_t> out(table.steps.size());
  std::iota(out.begin(), out.end(), 0);
  return out;
}

Batch collect_paths(const FinetuneContext& context, std::int64_t step, std::int64_t first,
                    std::int64_t n, const at::Tensor& labels, std::vector<bool> with_graph,
                    bool will_reuse) {
  const auto key = static_cast<std::uint32_t>(step);
  Batch batch;
  batch.first = first;
  batch.n = n;
  batch.labels = labels;
  const at::Tensor x_0 =
      prior_sample(context.streams, key, first, n, context.sample_shape, context.dtype);
  RolloutOptions options;
  options.keep_states = options.keep_velocities = options.keep_noises = true;
  if (!will_reuse && !context.policy.rollout) options.graphs = std::move(with_graph);
  Trajectory path = rollout(context.policy.collector(), context.table, x_0, Condition{labels},
                            keyed_noise(context.streams, key, first, x_0), options);
  batch.states = std::move(path.states);
  batch.tuned_velocities = std::move(path.velocities);
  batch.noises = std::move(path.noises);
  batch.with_graph = std::move(path.with_graph);
  return batch;
}

at::Tensor measure_against_base(const FinetuneContext& context, Batch& batch, std::size_t begin) {
  const at::NoGradGuard no_grad;
  batch.base_velocities.resize(context.table.steps.size());
  batch.control_cost = at::zeros({batch.n}, batch.states[0].options());
  at::Tensor log_ratio = at::zeros({batch.n}, at::kDouble);
  for (std::size_t k = begin; k < context.table.steps.size(); ++k) {
    const Transition& s = context.table.steps[k];
    at::Tensor& base = batch.base_velocities[k];
    if (!base.defined()) {
      base = context.policy.base->velocity(batch.states[k], time_tensor(s.t, batch.states[k]),
                                           Condition{batch.labels});
    }
    batch.control_cost +=
        control_cost(s, batch.tuned_velocities[k], base).to(batch.control_cost.scalar_type());
    log_ratio +=
        path_log_ratio(s, batch.tuned_velocities[k], base, batch.noises[k]).to(at::kDouble);
  }
  return log_ratio;
}

std::vector<at::Tensor> velocities_along(const FinetuneContext& context, const Batch& batch,
                                         const std::vector<std::int64_t>& steps) {
  std::vector<at::Tensor> kept, states, times, labels;
  for (const std::int64_t step : steps) {
    const auto k = static_cast<std::size_t>(step);
    if (!batch.with_graph.empty()) {
      kept.push_back(batch.with_graph[k]);
      continue;
    }
    states.push_back(batch.states[k]);
    times.push_back(time_tensor(context.table.steps[k].t, batch.states[k]));
    if (batch.labels.defined()) labels.push_back(batch.labels);
  }
  if (!kept.empty()) return kept;
  const Condition condition{labels.empty() ? at::Tensor() : at::cat(labels)};
  return context.policy.tuned->velocity(at::cat(states), at::cat(times), condition)
      .split_with_sizes(std::vector<std::int64_t>(steps.size(), batch.n));
}

void add_batch_metrics(LossReport& report, const Batch& batch) {
  const double n = static_cast<double>(batch.n);
  report.metrics.add(batch.metrics);
  report.metrics.add("reward", batch.rewards.sum().item<double>(), n);
  report.metrics.add("reward_square", batch.rewards.square().sum().item<double>(), n);
  if (batch.control_cost.defined()) {
    report.metrics.add("control_cost", batch.control_cost.sum().item<double>(), n);
  }
}

void finish_batch_metrics(std::map<std::string, double>& metrics) {
  metrics["reward_deviation"] =
      std::sqrt(std::max(0.0, metrics["reward_square"] - metrics["reward"] * metrics["reward"]));
  metrics.erase("reward_square");
}

}  // namespace tiltflow
