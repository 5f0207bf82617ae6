#include "tiltflow/finetune/path_losses.h"

#include <cmath>
#include <limits>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/finetune/path_weights.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {

const std::vector<std::string>& path_loss_methods() {
  static const std::vector<std::string> names{"log-variance", "variance", "trajectory-balance",
                                              "cross-entropy"};
  return names;
}

void bind_for(Fields& f, PathLossConfig& c, const std::string& method) {
  if (method == "cross-entropy") {
    f.value("trust_region", c.trust_region,
            "path weights are tempered to stay this many nats from equal ones; 0 = off",
            at_least(0));
  }
}

PathLoss::PathLoss(std::string method, PathLossConfig config)
    : method_(std::move(method)), config_(config), y0_(std::numeric_limits<double>::quiet_NaN()) {}

void PathLoss::end_step(std::map<std::string, double>& metrics) {
  finish_batch_metrics(metrics);
  if (method_ == "trajectory-balance") {
    y0_ = std::isnan(y0_) ? metrics["log_z"] : 0.95 * y0_ + 0.05 * metrics["log_z"];
  }
}

ParameterSet PathLoss::state() const {
  ParameterSet out;
  if (method_ == "trajectory-balance") out.add("y0", at::full({1}, y0_, at::kDouble));
  return out;
}

void PathLoss::restore(const ParameterSet& state) {
  if (method_ == "trajectory-balance") y0_ = state.at("y0").item<double>();
}

void PathLoss::begin_step(const FinetuneContext& context, std::int64_t, std::int64_t) {
  for (const Transition& s : context.table.steps) {
    if (!(s.s > 0)) {
      fail(ErrorKind::kConfig,
           cat(method_, " needs noise in every step; sampler ", context.table.name,
               " has none at t = ", s.t),
           "use auto, euler, exponential or ancestral");
    }
  }
}

Batch PathLoss::collect(const FinetuneContext& context, std::int64_t step, std::int64_t first,
                        std::int64_t n, bool will_reuse) {
  Batch batch = collect_paths(context, step, first, n, context.labels(first, n),
                              std::vector<bool>(context.table.steps.size(), true), will_reuse);
  const at::NoGradGuard no_grad;
  batch.rewards = context.reward.score(batch.states.back(), batch.labels);
  batch.log_weights = measure_against_base(context, batch) + batch.rewards;  // r - log dP_old/dP
  return batch;
}

LossReport PathLoss::loss(const FinetuneContext& context, const Batch& batch, std::int64_t total) {
  const std::vector<Transition>& steps = context.table.steps;
  const std::vector<at::Tensor> v = velocities_along(context, batch, all_steps(context.table));
  at::Tensor log_ratio =
      at::zeros({batch.n}, batch.rewards.options());  // log dP_u/dP on the collected paths
  for (std::size_t k = 0; k < steps.size(); ++k) {
    const double scale = steps[k].c / steps[k].s;
    const at::Tensor control = (v[k] - batch.base_velocities[k]) * scale;
    const at::Tensor seen =
        batch.noises[k] + (batch.tuned_velocities[k] - batch.base_velocities[k]) * scale;
    log_ratio = log_ratio + (control * (seen - 0.5 * control)).flatten(1).sum(1);
  }
  const double n = static_cast<double>(batch.n);
  const double share = n / static_cast<double>(total);
  const PathWeights weights = path_weights(batch.log_weights, config_.trust_region);
  LossReport report;
  if (method_ == "cross-entropy") {
    report.loss = -(weights.weights.to(log_ratio.scalar_type()) * log_ratio).sum() * share;
  } else if (method_ == "variance") {
    const at::Tensor y = batch.rewards - log_ratio;
    const at::Tensor z = (y - (y.detach().logsumexp(0) - std::log(n))).exp();
    report.loss = (z - z.mean()).square().sum() / static_cast<double>(total);
  } else {
    const at::Tensor y = batch.rewards - log_ratio;
    const at::Tensor centre = method_ == "log-variance" ? y.mean()
                              : std::isnan(y0_)
                                  ? y.mean().detach()
                                  : at::full({}, y0_, y.options().requires_grad(false));
    report.loss = (y - centre).square().sum() / static_cast<double>(total);
    report.metrics.add("log_z", batch.log_weights.mean().item<double>() * n, n);
  }
  add_weight_metrics(report, weights);
  add_batch_metrics(report, batch);
  return report;
}

}  // namespace tiltflow
