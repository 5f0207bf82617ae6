#include "tiltflow/finetune/basic_adjoint.h"

#include "tiltflow/base/error.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {

Batch BasicAdjointMatching::collect(const FinetuneContext& context, std::int64_t step, std::int64_t first, std::int64_t n, bool will_reuse) {
  if (will_reuse) fail(ErrorKind::kConfig, "basic-adjoint-matching: the adjoint belongs to the policy that collected it; buffer_passes must be 1");
  const at::NoGradGuard no_grad;
  const auto key = static_cast<std::uint32_t>(step);
  Batch batch;
  batch.first = first, batch.n = n;
  batch.labels = context.labels(first, n);
  const Condition condition{batch.labels};
  const at::Tensor x_0 = prior_sample(context.streams, key, first, n, context.sample_shape, context.dtype);
  RolloutOptions options;
  options.keep_states = options.keep_velocities = true;
  Trajectory path = rollout(context.policy.collector(), context.table, x_0, condition, keyed_noise(context.streams, key, first, x_0), options);
  batch.states = std::move(path.states), batch.tuned_velocities = std::move(path.velocities);
  ScoreAndGradient end = context.reward.score_and_gradient(batch.states.back(), batch.labels);
  batch.rewards = std::move(end.score), batch.control_cost = at::zeros({n}, batch.rewards.options());
  const std::size_t steps = context.table.steps.size();
  batch.targets.resize(steps), batch.base_velocities.resize(steps);
  at::Tensor a = -end.gradient;
  for (std::size_t k = steps; k-- > 0;) {
    const Transition& s = context.table.steps[k];
    const at::Tensor &x = batch.states[k], t = time_tensor(s.t, x);
    batch.targets[k] = a;
    // The control is needed before the products with both Jacobians: one plain call of the base first.
    batch.base_velocities[k] = context.policy.base->velocity(x, t, condition);
    batch.control_cost += control_cost(s, batch.tuned_velocities[k], batch.base_velocities[k]).to(batch.control_cost.scalar_type());
    if (k == 0) break;
    const at::Tensor pull = (batch.tuned_velocities[k] - batch.base_velocities[k]) * (s.c * s.c / (s.s * s.s));
    a = a * s.p + context.policy.tuned->vjp(x, t, condition, a * s.c + pull).input_gradient - context.policy.base->vjp(x, t, condition, pull).input_gradient;
  }
  return batch;
}

LossReport BasicAdjointMatching::loss(const FinetuneContext& context, const Batch& batch, std::int64_t total) {
  LossReport report;
  const std::vector<at::Tensor> v = velocities_along(context, batch);
  for (std::size_t k = 0; k < v.size(); ++k) {
    const Transition& s = context.table.steps[k];
    const at::Tensor term = ((v[k] - batch.base_velocities[k]) * (s.c / s.s) + batch.targets[k] * s.s).square().sum() * (0.5 / static_cast<double>(total));
    report.loss = report.loss.defined() ? report.loss + term : term;
  }
  add_batch_metrics(report, batch);
  return report;
}

}  // namespace tiltflow
