#include "tiltflow/train/optimizer.h"

#include <cmath>
#include <mutex>
#include <numbers>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/train/own_values.h"

namespace tiltflow {

void bind(Fields& f, OptimizerConfig& c) {
  f.value("learning_rate", c.learning_rate, "peak learning rate", positive());
  f.value("beta1", c.beta1, "decay of the first moment", between(0, 0.9999));
  f.value("beta2", c.beta2, "decay of the second moment", between(0, 0.99999));
  f.value("epsilon", c.epsilon, "added to the root of the second moment", positive());
  f.value("weight_decay", c.weight_decay, "decoupled weight decay", at_least(0));
  f.value("gradient_clip", c.gradient_clip, "largest global gradient norm; 0 = no clipping",
          at_least(0));
  f.value("schedule", c.schedule, "constant, cosine or linear",
          one_of({"constant", "cosine", "linear"}));
  f.value("warmup", c.warmup, "steps of linear warm-up", at_least_integer(0));
  f.value("final_fraction", c.final_fraction, "learning rate at the end as a fraction of the peak",
          between(0, 1));
}

double schedule_factor(const OptimizerConfig& c, std::int64_t step, std::int64_t total) {
  const double warm =
      c.warmup > 0 ? std::min(1.0, static_cast<double>(step + 1) / static_cast<double>(c.warmup))
                   : 1.0;
  if (c.schedule == "constant" || total <= c.warmup) return warm;
  const double u = std::clamp(static_cast<double>(step - c.warmup) /
                                  static_cast<double>(std::max<std::int64_t>(1, total - c.warmup)),
                              0.0, 1.0);
  const double shape = c.schedule == "linear" ? 1 - u : 0.5 * (1 + std::cos(std::numbers::pi * u));
  return warm * (c.final_fraction + (1 - c.final_fraction) * shape);
}

AdamW::AdamW(OptimizerConfig config, ParameterSet parameters)
    : config_(std::move(config)), parameters_(std::move(parameters)) {
  for (const auto& [name, tensor] : parameters_) {
    first_.push_back(at::zeros_like(tensor, tensor.options().requires_grad(false)));
    second_.push_back(at::zeros_like(first_.back()));
    steps_.push_back(at::zeros({}, first_.back().options().dtype(at::kFloat)));
  }
}

void AdamW::step(const std::vector<at::Tensor>& gradients, double learning_rate) {
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> weights, given, first, second, steps;
  std::size_t i = 0;
  for (const auto& [name, tensor] : parameters_) {
    if (gradients[i].defined()) {
      weights.push_back(tensor.detach());
      given.push_back(gradients[i]);
      first.push_back(first_[i]);
      second.push_back(second_[i]);
      steps.push_back(steps_[i]);
    }
    ++i;
  }
  if (weights.empty()) return;
  at::_foreach_add_(steps, 1);
  at::_fused_adamw_(weights, given, first, second, {}, steps, learning_rate, config_.beta1,
                    config_.beta2, config_.weight_decay, config_.epsilon, /*amsgrad=*/false,
                    /*maximize=*/false);
  for (const auto& [name, tensor] : parameters_) {
    tensor.unsafeGetTensorImpl()
        ->bump_version();  // the fused operator does not; copies in bf16 depend on it
  }
}

ParameterSet AdamW::state() const {
  ParameterSet out;
  std::size_t i = 0;
  for (const auto& [name, tensor] : parameters_) {
    out.add("exp_avg." + name, first_[i]);
    out.add("exp_avg_sq." + name, second_[i]);
    ++i;
  }
  out.add("step", steps_.empty() ? at::zeros({0}) : at::stack(steps_));
  return out;
}

void AdamW::restore(const ParameterSet& state) {
  const at::Tensor steps = at::empty({static_cast<std::int64_t>(steps_.size())});  // on the CPU
  ParameterSet target;
  for (const auto& [name, tensor] : this->state()) {
    target.add(name, name == "step" ? steps : tensor);
  }
  assign(target, state, "optimiser state");
  for (std::size_t i = 0; i < steps_.size(); ++i) {
    steps_[i].copy_(steps[static_cast<std::int64_t>(i)]);
  }
}

double clip_gradients(std::vector<at::Tensor>& gradients, double limit) {
  double total = 0;
  std::vector<at::Tensor> given;
  for (const at::Tensor& g : gradients) {
    if (g.defined()) given.push_back(g);
  }
  if (given.empty() || given.front().device().is_cpu()) {
    for (const at::Tensor& g : given) total += g.square().sum(at::kDouble).item<double>();
  } else {  // waits for the device once
    total = at::stack(at::_foreach_norm(given, 2, at::kDouble))
                .square()
                .sum(at::kDouble)
                .item<double>();
  }
  const double norm = std::sqrt(total);
  if (limit > 0 && norm > limit) at::_foreach_mul_(given, limit / norm);
  return norm;
}

WeightAverage::WeightAverage(const ParameterSet& parameters, double decay)
    : parameters_(parameters), average_(clone(parameters, false)), decay_(decay) {}

void WeightAverage::update(std::int64_t updates_done) {
  const at::NoGradGuard no_grad;
  const double n = static_cast<double>(updates_done);
  const double decay = std::min(decay_, (1 + n) / (10 + n));
  std::vector<at::Tensor> average = average_.tensors();
  std::vector<at::Tensor> weights;
  for (const auto& [name, tensor] : parameters_) weights.push_back(tensor.detach());
  at::_foreach_lerp_(average, weights, 1 - decay);
}

namespace {

struct Swap {
  const SwappedWeights* by;
  ParameterSet target, kept;
};
std::mutex g_swaps_mutex;
std::vector<Swap> g_swaps;

}  // namespace

SwappedWeights::SwappedWeights(ParameterSet target, const ParameterSet& values)
    : target_(std::move(target)), kept_(clone(target_, false)) {
  {
    const std::lock_guard lock(g_swaps_mutex);
    g_swaps.push_back({this, target_, kept_});
  }
  assign(target_, values, "averaged weights");
}

SwappedWeights::~SwappedWeights() {
  assign(target_, kept_, "kept weights");
  const std::lock_guard lock(g_swaps_mutex);
  std::erase_if(g_swaps, [this](const Swap& swap) { return swap.by == this; });
}

ParameterSet own_values(const ParameterSet& target) {
  const std::lock_guard lock(g_swaps_mutex);
  for (const Swap& swap : g_swaps) {
    if (!target.empty() && !swap.target.empty() &&
        swap.target.begin()->second.is_same(target.begin()->second)) {
      return clone(swap.kept, false);
    }
  }
  return target;
}

}  // namespace tiltflow
