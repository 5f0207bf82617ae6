#include "tiltflow/finetune/reciprocal_adjoint.h"

#include "tiltflow/base/error.h"
#include "tiltflow/finetune/noising.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {

void bind(Fields& f, ReciprocalConfig& c) {
  bind(f, c.replay);
  f.value("noisings", c.noisings, "times a drawn end point is noised anew", at_least_integer(1));
  f.value("gradient_cap", c.gradient_cap, "longest reward gradient of a sample; 0 = none",
          at_least(0));
}

void ReciprocalAdjointMatching::begin_step(const FinetuneContext& context, std::int64_t,
                                           std::int64_t) {
  if (checked_) return;
  if (!is_standard_normal(*context.policy.base, context.path, context.sample_shape)) {
    fail(ErrorKind::kConfig, "reciprocal-adjoint-matching needs a standard normal base",
         "model.family = \"gaussian-mixture\" with args.means = \"0 0\" (deviation 1); for other "
         "bases use efficient-adjoint-matching");
  }
  checked_ = true;
}

Batch ReciprocalAdjointMatching::collect(const FinetuneContext& context, std::int64_t step,
                                         std::int64_t first, std::int64_t n, bool will_reuse) {
  ReplayBuffer::require_alone(name(), will_reuse);
  const at::NoGradGuard no_grad;
  const auto key = static_cast<std::uint32_t>(step);
  Batch batch;
  batch.first = first;
  batch.n = n;
  batch.labels = context.labels(first, n);
  ReplayBuffer::Columns newest;
  const ReplayBuffer::Columns drawn = buffer_.draw(
      context, step, first, n,
      [&]() -> ReplayBuffer::Columns {
        const at::Tensor x_0 =
            prior_sample(context.streams, key, first, n, context.sample_shape, context.dtype);
        const at::Tensor x_1 =
            rollout(context.policy.collector(), context.table, x_0, Condition{batch.labels},
                    keyed_noise(context.streams, key, first, x_0))
                .last;
        ScoreAndGradient end = context.reward.score_and_gradient(x_1, batch.labels);
        if (config_.gradient_cap > 0) {
          std::vector<std::int64_t> shape(static_cast<std::size_t>(x_1.dim()), 1);
          shape[0] = n;
          end.gradient =
              end.gradient * (config_.gradient_cap /
                              end.gradient.flatten(1).norm(2, 1).clamp_min(config_.gradient_cap))
                                 .view(shape);
        }
        return {x_1, end.gradient, end.score};
      },
      &newest);
  batch.rewards = newest[2];  // what the policy samples now
  for (const Noised& noised : noise_anew(context, key, first, drawn[0], config_.noisings)) {
    batch.times.push_back(noised.t);
    batch.states.push_back(noised.state);
    batch.targets.push_back(linear_base_target(noised, drawn[1]));
  }
  return batch;
}

LossReport ReciprocalAdjointMatching::loss(const FinetuneContext& context, const Batch& batch,
                                           std::int64_t total) {
  const std::vector<at::Tensor> v = velocities_of_noised(context, batch);
  LossReport report;
  for (std::size_t j = 0; j < v.size(); ++j) {
    const at::Tensor term = (v[j] - batch.targets[j]).flatten(1).square().mean(1).sum() /
                            static_cast<double>(total * config_.noisings);
    report.loss = report.loss.defined() ? report.loss + term : term;
  }
  add_batch_metrics(report, batch);
  return report;
}

}  // namespace tiltflow
