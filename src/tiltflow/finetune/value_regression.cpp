#include "tiltflow/finetune/value_regression.h"

#include "tiltflow/base/error.h"
#include "tiltflow/finetune/noising.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {

void bind(Fields& f, ValueConfig& c) {
  bind(f, c.replay);
  f.value("noisings", c.noisings, "times a drawn end point is noised anew", at_least_integer(1));
}

void ValueRegression::begin_step(const FinetuneContext& context, std::int64_t, std::int64_t) {
  if (!context.policy.log_value) {
    fail(ErrorKind::kConfig, "value-regression fits a scalar network",
         "set policy.kind = \"control\" and policy.control.kind = \"potential\"");
  }
}

Batch ValueRegression::collect(const FinetuneContext& context, std::int64_t step,
                               std::int64_t first, std::int64_t n, bool will_reuse) {
  ReplayBuffer::require_alone(name(), will_reuse);
  const at::NoGradGuard no_grad;
  const auto key = static_cast<std::uint32_t>(step);
  Batch batch;
  batch.first = first;
  batch.n = n;
  const at::Tensor labels = context.labels(first, n);
  ReplayBuffer::Columns newest;
  const ReplayBuffer::Columns drawn = buffer_.draw(
      context, step, first, n,
      [&]() -> ReplayBuffer::Columns {
        const at::Tensor x_0 =
            prior_sample(context.streams, key, first, n, context.sample_shape, context.dtype);
        const at::Tensor x_1 = rollout(*context.policy.base, context.table, x_0, Condition{labels},
                                       keyed_noise(context.streams, key, first, x_0))
                                   .last;
        ReplayBuffer::Columns out{x_1, context.reward.score(x_1, labels)};
        if (labels.defined()) out.push_back(labels);
        return out;
      },
      &newest);
  batch.rewards = newest[1];
  batch.log_weights = drawn[1];
  if (labels.defined()) batch.labels = drawn[2];
  for (const Noised& noised : noise_anew(context, key, first, drawn[0], config_.noisings)) {
    batch.times.push_back(noised.t);
    batch.states.push_back(noised.state);
  }
  return batch;
}

LossReport ValueRegression::loss(const FinetuneContext& context, const Batch& batch,
                                 std::int64_t total) {
  const Condition condition{batch.labels.defined() ? batch.labels.repeat({config_.noisings})
                                                   : at::Tensor()};
  const at::Tensor v =
      context.policy.log_value(at::cat(batch.states), at::cat(batch.times), condition)
          .view({config_.noisings, batch.n});
  const at::Tensor w = (batch.log_weights - context.log_z).exp().to(v.scalar_type());
  LossReport report;
  report.loss = (v.exp() - w * v).sum() / static_cast<double>(total * config_.noisings);
  report.metrics.add("mean_value", v.detach().sum().item<double>(), static_cast<double>(v.numel()));
  add_batch_metrics(report, batch);
  return report;
}

}  // namespace tiltflow
