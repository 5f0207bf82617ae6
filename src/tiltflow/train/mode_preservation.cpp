#include "tiltflow/train/mode_preservation.h"

#include <cmath>

#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {
constexpr std::uint32_t kModeKey =
    0x60000000u;  // added to the step: noise that no training step uses
}

void bind(Fields& f, ModesConfig& c) {
  f.value("codes", c.codes,
          "codes of the noise that samples must go on telling (mode-preserving reward); 0 = none",
          at_least_integer(0));
  f.value("weight", c.weight, "weight of log q(code | sample) in the reward", positive());
  f.value("every", c.every, "steps between fits of the classifier q", at_least_integer(1));
  bind_side_fit(f, c);
}

ModePreservation::ModePreservation(ModesConfig config, const std::vector<std::int64_t>& shape,
                                   std::int64_t classes, std::uint64_t seed)
    : config_(config) {
  const RandomStreams streams(seed);
  direction_ = streams.normal(Purpose::kProbe, kModeKey, 0, 0, 1, shape)[0].flatten();
  direction_ = direction_ / direction_.norm();
  weights_ = clone(
      init_state_network({shape, classes, config_.width, config_.codes}, "modes", streams), true);
  for (const auto& [name, tensor] : weights_) frozen_.add(name, tensor.detach());
  optimizer_ = std::make_unique<AdamW>(OptimizerConfig{}, weights_);
}

at::Tensor ModePreservation::codes(const at::Tensor& x_0) const {
  const at::NoGradGuard no_grad;
  const at::Tensor along = x_0.to(at::kDouble).flatten(1).mv(direction_.to(at::kDouble));
  const at::Tensor share = at::special_ndtr(along);
  return (share * static_cast<double>(config_.codes)).to(at::kLong).clamp_(0, config_.codes - 1);
}

at::Tensor ModePreservation::extra_reward(const at::Tensor& x_0, const at::Tensor& x_1,
                                          const at::Tensor& labels) const {
  const at::Tensor q = state_network(frozen_, x_1, labels)
                           .log_softmax(1)
                           .gather(1, codes(x_0).unsqueeze(1))
                           .squeeze(1);
  return ((q + std::log(static_cast<double>(config_.codes))) * config_.weight)
      .to(x_1.scalar_type());
}

void ModePreservation::refresh(const FinetuneContext& context, std::int64_t step) {
  const std::uint32_t key = kModeKey + static_cast<std::uint32_t>(step);
  const auto [x_0, x_1, labels] = policy_samples(context, key, config_.samples);
  const at::Tensor z = codes(x_0);
  {
    const at::NoGradGuard no_grad;
    accuracy_ =
        state_network(frozen_, x_1, labels).argmax(1).eq(z).to(at::kDouble).mean().item<double>();
    extra_reward_ = extra_reward(x_0, x_1, labels).mean().item<double>();
  }
  const at::AutoGradMode grad(true);
  for (std::int64_t i = 0, n = fresh_ ? 10 * config_.fits : config_.fits; i < n; ++i) {
    const at::Tensor loss =
        -state_network(weights_, x_1, labels).log_softmax(1).gather(1, z.unsqueeze(1)).mean();
    optimizer_->step(
        torch::autograd::grad({loss}, weights_.tensors(), {}, false, false, /*allow_unused=*/true),
        config_.learning_rate);
  }
  fresh_ = false;
}

void ModePreservation::add_metrics(std::map<std::string, double>& metrics) const {
  metrics["mode_accuracy"] = accuracy_;
  metrics["mode_bonus"] = extra_reward_;
}

ParameterSet ModePreservation::state() const {
  ParameterSet out;
  for (const auto& [name, tensor] : frozen_) out.add("weights." + name, tensor);
  for (const auto& [name, tensor] : optimizer_->state()) out.add("optimizer." + name, tensor);
  out.add("last", at::tensor(std::vector<double>{fresh_ ? 1.0 : 0.0, accuracy_, extra_reward_},
                             at::kDouble));
  return out;
}

void ModePreservation::restore(const ParameterSet& state) {
  if (!state.contains("last")) return;
  {
    const at::NoGradGuard no_grad;
    assign(weights_, tensors_below(state, "weights."), "mode classifier");
  }
  optimizer_->restore(tensors_below(state, "optimizer."));
  const at::Tensor last = state.at("last");
  fresh_ = last[0].item<double>() > 0;
  accuracy_ = last[1].item<double>();
  extra_reward_ = last[2].item<double>();
}

}  // namespace tiltflow
