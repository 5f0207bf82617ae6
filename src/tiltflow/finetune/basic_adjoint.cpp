#include "tiltflow/finetune/basic_adjoint.h"

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {

Batch BasicAdjointMatching::collect(const FinetuneContext& context, std::int64_t step,
                                    std::int64_t first, std::int64_t n, bool will_reuse) {
  if (will_reuse) {
    fail(ErrorKind::kConfig,
         cat(name(),
             ": the adjoint belongs to the policy that collected it; buffer_passes must be 1"));
  }
  Batch batch = collect_paths(context, step, first, n, context.labels(first, n),
                              std::vector<bool>(context.table.steps.size(), true), will_reuse);
  const at::NoGradGuard no_grad;
  const Condition condition{batch.labels};
  ScoreAndGradient end = context.reward.score_and_gradient(batch.states.back(), batch.labels);
  batch.rewards = std::move(end.score);
  const std::size_t steps = context.table.steps.size();
  batch.targets.resize(steps);
  batch.base_velocities.resize(steps);
  at::Tensor a = -end.gradient;
  for (std::size_t k = steps; k-- > 0;) {
    const Transition& s = context.table.steps[k];
    const at::Tensor& x = batch.states[k];
    const at::Tensor t = time_tensor(s.t, x);
    if (!continuous_) batch.targets[k] = a;
    if (!continuous_ && k == 0) break;
    at::Tensor cost_gradient;  // of the control's own cost, by both Jacobians
    const Vjp base = context.policy.base->vjp_of(x, t, condition, [&](const at::Tensor& v) {
      return cost_gradient = (batch.tuned_velocities[k] - v) * (s.c * s.c / (s.s * s.s));
    });
    a = a * s.p +
        context.policy.tuned->vjp(x, t, condition, a * s.c + cost_gradient).input_gradient -
        base.input_gradient;
    batch.base_velocities[k] = base.velocity;
    if (continuous_) batch.targets[k] = a;
  }
  measure_against_base(context, batch);
  return batch;
}

LossReport BasicAdjointMatching::loss(const FinetuneContext& context, const Batch& batch,
                                      std::int64_t total) {
  LossReport report;
  const std::vector<at::Tensor> v = velocities_along(context, batch, all_steps(context.table));
  for (std::size_t k = 0; k < v.size(); ++k) {
    const Transition& s = context.table.steps[k];
    const at::Tensor term =
        ((v[k] - batch.base_velocities[k]) * (s.c / s.s) + batch.targets[k] * s.s).square().sum() *
        (0.5 / static_cast<double>(total));
    report.loss = report.loss.defined() ? report.loss + term : term;
  }
  add_batch_metrics(report, batch);
  return report;
}

}  // namespace tiltflow
