#include "tiltflow/finetune/policy_gradient.h"

#include <algorithm>

#include "tiltflow/tensor/aten.h"

namespace tiltflow {

void bind(Fields& f, PolicyGradientConfig& c) {
  bind(f, c.advantage);
  f.value("loss_steps", c.loss_steps, "time steps per iteration in the loss; 0 = all", at_least_integer(0));
  f.value("clip", c.clip, "ratios beyond 1 +- clip get no gradient; 0 = none", at_least(0));
  f.value("density", c.density, "log-densities and KL of a step: mean over the sample's entries (as published) or sum (exact)", one_of({"mean", "sum"}));
  f.value("kl", c.kl, "weight of the KL of a step against the base", at_least(0));
  f.value("kl_to_go", c.kl_to_go, "charge a step with the KL of later steps: the exact gradient of E[r - kl KL]");
}

double PolicyGradient::training_calls(const TransitionTable& table) const {
  return static_cast<double>(config_.loss_steps == 0 ? table.size() : std::min<std::int64_t>(config_.loss_steps, table.size()));
}

void PolicyGradient::begin_step(const FinetuneContext& context, std::int64_t step, std::int64_t) {
  const std::int64_t steps = context.table.size();
  subset_ = context.streams.choose(Purpose::kSubset, static_cast<std::uint32_t>(step), 0, steps, config_.loss_steps == 0 ? steps : std::min(config_.loss_steps, steps));
}

Batch PolicyGradient::collect(const FinetuneContext& context, std::int64_t step, std::int64_t first, std::int64_t n, bool) {
  const at::NoGradGuard no_grad;
  const auto key = static_cast<std::uint32_t>(step);
  Batch batch;
  batch.first = first, batch.n = n;
  batch.labels = grouped(context.labels, config_.advantage.group)(first, n);
  const at::Tensor x_0 = prior_sample(context.streams, key, first, n, context.sample_shape, context.dtype);
  RolloutOptions options;
  options.keep_states = options.keep_velocities = true;
  Trajectory path = rollout(context.policy.collector(), context.table, x_0, Condition{batch.labels}, keyed_noise(context.streams, key, first, x_0), options);
  batch.states = std::move(path.states), batch.tuned_velocities = std::move(path.velocities);
  batch.rewards = context.reward.score(batch.states.back(), batch.labels);
  batch.advantages = advantages(batch.rewards, config_.advantage);
  if (!config_.kl_to_go || config_.kl <= 0) return batch;
  at::Tensor later = at::zeros({n}, batch.rewards.options());  // KL of the steps after k, less its mean over the batch
  batch.targets.resize(context.table.steps.size());
  for (std::size_t k = context.table.steps.size(); k-- > 0;) {
    const Transition& s = context.table.steps[k];
    batch.targets[k] = later - later.mean();
    later = later + control_cost(s, batch.tuned_velocities[k], context.policy.base->velocity(batch.states[k], time_tensor(s.t, x_0), Condition{batch.labels})) * (config_.density == "mean" ? 1.0 / static_cast<double>(x_0[0].numel()) : 1.0);
  }
  batch.control_cost = later * (config_.density == "mean" ? static_cast<double>(x_0[0].numel()) : 1.0);
  return batch;
}

LossReport PolicyGradient::loss(const FinetuneContext& context, const Batch& batch, std::int64_t total) {
  std::vector<at::Tensor> states, times, labels;
  for (const std::int64_t k : subset_) {
    states.push_back(batch.states[static_cast<std::size_t>(k)]);
    times.push_back(time_tensor(context.table.steps[static_cast<std::size_t>(k)].t, states.back()));
    if (batch.labels.defined()) labels.push_back(batch.labels);
  }
  const Condition condition{labels.empty() ? at::Tensor() : at::cat(labels)};
  const at::Tensor all = at::cat(states), t = at::cat(times);
  const std::vector<std::int64_t> sizes(subset_.size(), batch.n);
  const std::vector<at::Tensor> v = context.policy.tuned->velocity(all, t, condition).split_with_sizes(sizes);
  std::vector<at::Tensor> base;
  if (config_.kl > 0) {
    const at::NoGradGuard no_grad;
    base = context.policy.base->velocity(all, t, condition).split_with_sizes(sizes);
  }
  const double entries = static_cast<double>(batch.states[0][0].numel()), share = config_.density == "mean" ? 1 / entries : 1, scale = 1.0 / static_cast<double>(total * static_cast<std::int64_t>(subset_.size()));
  LossReport report;
  for (std::size_t i = 0; i < subset_.size(); ++i) {
    const auto k = static_cast<std::size_t>(subset_[i]);
    const Transition& s = context.table.steps[k];
    const at::Tensor old = transition_log_density(s, batch.states[k], batch.tuned_velocities[k], batch.states[k + 1]);
    const at::Tensor ratio = ((transition_log_density(s, batch.states[k], v[i], batch.states[k + 1]) - old) * share).exp();
    const at::Tensor advantage = batch.targets.empty() ? batch.advantages : batch.advantages - config_.kl * batch.targets[k];
    at::Tensor each = -advantage * ratio;
    if (config_.clip > 0) {
      each = at::maximum(each, -advantage * ratio.clamp(1 - config_.clip, 1 + config_.clip));
      report.metrics.add("clip_rate", ((ratio.detach() - 1).abs() > config_.clip).sum().item<double>(), static_cast<double>(batch.n));
    }
    if (config_.kl > 0) {
      const at::Tensor kl = control_cost(s, v[i], base[i]) * share;
      report.metrics.add("step_kl", kl.sum().item<double>(), static_cast<double>(batch.n));
      each = each + config_.kl * kl;
    }
    const at::Tensor term = each.sum() * scale;
    report.loss = report.loss.defined() ? report.loss + term : term;
  }
  add_batch_metrics(report, batch);
  return report;
}

}  // namespace tiltflow
