#include "tiltflow/finetune/policy_gradient.h"

#include <algorithm>

#include "tiltflow/tensor/aten.h"

namespace tiltflow {

void bind(Fields& f, PolicyGradientConfig& c) {
  bind(f, c.advantage);
  f.value("loss_steps", c.loss_steps, "time steps per iteration in the loss; 0 = all",
          at_least_integer(0));
  f.value("clip", c.clip, "ratios beyond 1 +- clip get no gradient; 0 = none", at_least(0));
  f.value("density", c.density,
          "log-densities and KL of a step: mean over the sample's entries (as published) or sum "
          "(exact)",
          one_of({"mean", "sum"}));
  f.value("kl", c.kl, "weight of the KL of a step against the base", at_least(0));
  f.value("kl_to_go", c.kl_to_go,
          "charge a step with the KL of later steps: the exact gradient of E[r - kl KL]");
}

double PolicyGradient::training_calls(const TransitionTable& table) const {
  return static_cast<double>(config_.loss_steps == 0
                                 ? table.size()
                                 : std::min<std::int64_t>(config_.loss_steps, table.size()));
}

void PolicyGradient::begin_step(const FinetuneContext& context, std::int64_t step, std::int64_t) {
  const std::int64_t steps = context.table.size();
  subset_ =
      context.streams.choose(Purpose::kSubset, static_cast<std::uint32_t>(step), 0, steps,
                             config_.loss_steps == 0 ? steps : std::min(config_.loss_steps, steps));
}

double PolicyGradient::share_of(const Batch& batch) const {
  return config_.density == "mean" ? 1.0 / static_cast<double>(batch.states[0][0].numel()) : 1.0;
}

Batch PolicyGradient::collect(const FinetuneContext& context, std::int64_t step, std::int64_t first,
                              std::int64_t n, bool will_reuse) {
  std::vector<bool> graphs(context.table.steps.size(), false);
  for (const std::int64_t k : subset_) graphs[static_cast<std::size_t>(k)] = true;
  Batch batch = collect_paths(context, step, first, n,
                              grouped(context.labels, config_.advantage.group)(first, n),
                              std::move(graphs), will_reuse);
  const at::NoGradGuard no_grad;
  batch.rewards = context.reward.score(batch.states.back(), batch.labels);
  if (context.extra_reward) {
    batch.rewards += context.extra_reward(batch.states.front(), batch.states.back(), batch.labels);
  }
  batch.advantages = advantages(batch.rewards, config_.advantage);
  if (!config_.kl_to_go || config_.kl <= 0) return batch;
  measure_against_base(context, batch);
  at::Tensor later = at::zeros(
      {n}, batch.rewards.options());  // KL of the steps after k, less its mean over the batch
  batch.targets.resize(context.table.steps.size());
  for (std::size_t k = context.table.steps.size(); k-- > 0;) {
    batch.targets[k] = later - later.mean();
    later = later + control_cost(context.table.steps[k], batch.tuned_velocities[k],
                                 batch.base_velocities[k]) *
                        share_of(batch);
  }
  return batch;
}

LossReport PolicyGradient::loss(const FinetuneContext& context, const Batch& batch,
                                std::int64_t total) {
  const std::vector<at::Tensor> v = velocities_along(context, batch, subset_);
  const double share = share_of(batch);
  const double scale = 1.0 / static_cast<double>(total * static_cast<std::int64_t>(subset_.size()));
  std::vector<at::Tensor> base;
  if (config_.kl > 0) {
    const at::NoGradGuard no_grad;
    for (const std::int64_t step : subset_) {
      const auto k = static_cast<std::size_t>(step);
      base.push_back(!batch.base_velocities.empty()
                         ? batch.base_velocities[k]
                         : context.policy.base->velocity(
                               batch.states[k],
                               time_tensor(context.table.steps[k].t, batch.states[k]),
                               Condition{batch.labels}));
    }
  }
  LossReport report;
  for (std::size_t i = 0; i < subset_.size(); ++i) {
    const auto k = static_cast<std::size_t>(subset_[i]);
    const Transition& s = context.table.steps[k];
    at::Tensor log_ratio;
    if (guard_) {
      log_ratio = ((v[i] - batch.tuned_velocities[k]) * batch.noises[k]).flatten(1).sum(1) * s.c;
    } else {
      const at::Tensor old = transition_log_density(s, batch.states[k], batch.tuned_velocities[k],
                                                    batch.states[k + 1]);
      log_ratio = transition_log_density(s, batch.states[k], v[i], batch.states[k + 1]) - old;
    }
    const at::Tensor ratio = (log_ratio * share).exp();
    const at::Tensor advantage =
        batch.targets.empty() ? batch.advantages : batch.advantages - config_.kl * batch.targets[k];
    at::Tensor each = -advantage * ratio;
    if (config_.clip > 0) {
      each = at::maximum(each, -advantage * ratio.clamp(1 - config_.clip, 1 + config_.clip));
      report.metrics.add("clip_rate",
                         ((ratio.detach() - 1).abs() > config_.clip).sum().item<double>(),
                         static_cast<double>(batch.n));
    }
    if (guard_) each = each / s.c;
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
