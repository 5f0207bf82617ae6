#include "tiltflow/finetune/reciprocal_adjoint.h"

#include <algorithm>
#include <cstdlib>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/finetune/noising.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/tensor/process_group.h"

namespace tiltflow {

void bind(Fields& f, ReciprocalConfig& c) {
  f.value("noisings", c.noisings, "times a drawn end point is noised anew", at_least_integer(1));
  f.value("refresh", c.refresh, "optimiser steps per rollout", at_least_integer(1));
  f.value("replay", c.replay, "rollouts kept in the buffer", at_least_integer(1));
  f.value("gradient_cap", c.gradient_cap, "longest reward gradient of a sample; 0 = none", at_least(0));
}

void ReciprocalAdjointMatching::begin_step(const FinetuneContext& context, std::int64_t, std::int64_t) {
  if (checked_) return;
  if (world_size() > 1) fail(ErrorKind::kConfig, "reciprocal-adjoint-matching keeps its buffer in one process", "run it without `launch`");
  const at::NoGradGuard no_grad;
  const at::Tensor x = prior_sample(context.streams, 0, 0, 8, context.sample_shape, context.dtype), t = at::linspace(0.1, 0.9, 8, x.options());
  const at::Tensor found = context.policy.base->velocity(x, t, Condition{context.labels(0, 8)});
  if (!at::allclose(found, standard_normal_velocity(path_points(context.path, t), x), 1e-3, 1e-3)) {
    fail(ErrorKind::kConfig, "reciprocal-adjoint-matching needs a standard normal base", "model.family = \"gaussian-mixture\" with args.means = \"0 0\" (deviation 1); for other bases use efficient-adjoint-matching");
  }
  checked_ = true;
}

Batch ReciprocalAdjointMatching::collect(const FinetuneContext& context, std::int64_t step, std::int64_t first, std::int64_t n, bool will_reuse) {
  if (will_reuse) fail(ErrorKind::kConfig, "reciprocal-adjoint-matching has a buffer of its own: buffer_passes must be 1", "set method.refresh and method.replay instead");
  const at::NoGradGuard no_grad;
  const auto key = static_cast<std::uint32_t>(step);
  Batch batch;
  batch.first = first, batch.n = n;
  batch.labels = context.labels(first, n);
  Stored stored;
  {
    const std::lock_guard lock(mutex_);
    stored = buffer_[first];
  }
  if (!stored.x_1.defined() || step % config_.refresh == 0) {
    const at::Tensor x_0 = prior_sample(context.streams, key, first, n, context.sample_shape, context.dtype);
    const at::Tensor x_1 = rollout(context.policy.collector(), context.table, x_0, Condition{batch.labels}, keyed_noise(context.streams, key, first, x_0)).last;
    ScoreAndGradient end = context.reward.score_and_gradient(x_1, batch.labels);
    if (config_.gradient_cap > 0) {
      std::vector<std::int64_t> shape(static_cast<std::size_t>(x_1.dim()), 1);
      shape[0] = n;
      end.gradient = end.gradient * (config_.gradient_cap / end.gradient.flatten(1).norm(2, 1).clamp_min(config_.gradient_cap)).view(shape);
    }
    const auto push = [&](at::Tensor& kept, const at::Tensor& fresh) {
      const at::Tensor all = kept.defined() ? at::cat({kept, fresh}) : fresh;
      kept = all.narrow(0, std::max<std::int64_t>(0, all.size(0) - config_.replay * n), std::min(all.size(0), config_.replay * n)).clone();
    };
    push(stored.x_1, x_1), push(stored.gradient, end.gradient), push(stored.reward, end.score);
    const std::lock_guard lock(mutex_);
    buffer_[first] = stored;
  }
  const std::int64_t held = stored.x_1.size(0);
  const at::Tensor u = context.streams.uniform(Purpose::kSubset, key, first, n, {}, at::kDouble);
  const at::Tensor rows = (u * static_cast<double>(held)).to(at::kLong).clamp_max(held - 1);
  const at::Tensor x_1 = stored.x_1.index_select(0, rows), gradient = stored.gradient.index_select(0, rows);
  batch.rewards = stored.reward.narrow(0, held - n, n);  // of the newest rollout: what the policy samples now
  for (const Noised& noised : noise_anew(context, key, first, x_1, config_.noisings)) {
    batch.times.push_back(noised.t), batch.states.push_back(noised.state);
    batch.targets.push_back(linear_base_target(noised, gradient));
  }
  return batch;
}

LossReport ReciprocalAdjointMatching::loss(const FinetuneContext& context, const Batch& batch, std::int64_t total) {
  const std::vector<at::Tensor> v = velocities_of_noised(context, batch);
  LossReport report;
  for (std::size_t j = 0; j < v.size(); ++j) {
    const at::Tensor term = (v[j] - batch.targets[j]).flatten(1).square().mean(1).sum() / static_cast<double>(total * config_.noisings);
    report.loss = report.loss.defined() ? report.loss + term : term;
  }
  add_batch_metrics(report, batch);
  return report;
}

ParameterSet ReciprocalAdjointMatching::state() const {
  const std::lock_guard lock(mutex_);
  ParameterSet out;
  for (const auto& [first, s] : buffer_) {
    const std::string prefix = cat(first, ".");
    out.add(prefix + "x_1", s.x_1), out.add(prefix + "gradient", s.gradient), out.add(prefix + "reward", s.reward);
  }
  return out;
}

void ReciprocalAdjointMatching::restore(const ParameterSet& state) {
  buffer_.clear();
  for (const auto& [name, tensor] : state) {
    Stored& s = buffer_[std::atoll(name.c_str())];
    const std::string part = name.substr(name.find('.') + 1);
    (part == "x_1" ? s.x_1 : part == "gradient" ? s.gradient : s.reward) = tensor.clone();
  }
}

}  // namespace tiltflow
