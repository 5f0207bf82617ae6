#include "tiltflow/train/surrogate.h"

#include <algorithm>
#include <cmath>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

constexpr std::uint32_t kRefreshKey =
    0x40000000u;  // added to the step: noise that no training step uses
constexpr std::int64_t kFitBatch = 128;

// Standardised prediction, [N].
at::Tensor network(const ParameterSet& w, const at::Tensor& states, const at::Tensor& labels) {
  return state_network(w, states, labels).squeeze(1);
}

class LearnedReward final : public Reward {
 public:
  LearnedReward(const ParameterSet& weights, ParameterSet numbers) : numbers_(std::move(numbers)) {
    for (const auto& [name, tensor] : weights) {
      weights_.add(name, tensor.detach());  // the same memory, no graph
    }
  }
  const RewardInfo& info() const override { return info_; }
  at::Tensor score(const at::Tensor& states, const RewardCondition& condition) const override {
    return (network(weights_, states, condition.labels) * numbers_.at("deviation") +
            numbers_.at("mean"))
        .to(states.scalar_type());
  }

 private:
  ParameterSet weights_, numbers_;
  RewardInfo info_{"learned surrogate", true, "Ding et al. 2024, arXiv 2412.15689"};
};

}  // namespace

void bind(Fields& f, SurrogateConfig& c) {
  f.value("every", c.every,
          "steps between refreshes of a learned reward that stands in for the true one; 0 = none",
          at_least_integer(0));
  bind_side_fit(f, c);
  f.value("buffer", c.buffer, "newest samples that are kept", at_least_integer(2));
}

Surrogate::Surrogate(SurrogateConfig config, const std::vector<std::int64_t>& shape,
                     std::int64_t classes, std::uint64_t seed)
    : config_(config) {
  weights_ = clone(
      init_state_network({shape, classes, config_.width, 1}, "surrogate", RandomStreams(seed)),
      true);
  numbers_.add("mean", at::zeros({}));
  numbers_.add("deviation", at::ones({}));
  reward_ = std::make_shared<StateReward>(std::make_shared<LearnedReward>(weights_, numbers_),
                                          identity_decoder());
  optimizer_ = std::make_unique<AdamW>(OptimizerConfig{}, weights_);
}

void Surrogate::refresh(const FinetuneContext& context, const StateReward& truth,
                        std::int64_t step) {
  const std::uint32_t key = kRefreshKey + static_cast<std::uint32_t>(step);
  const auto [x_0, x_1, labels] = policy_samples(context, key, config_.samples);
  {
    const at::NoGradGuard no_grad;
    const at::Tensor r = truth.score(x_1, labels).to(at::kFloat);
    const bool first = size() == 0;
    const at::Tensor error = reward_->score(x_1, labels).to(at::kFloat) - r;
    r2_ = first ? 0
                : 1 - error.square().mean().item<double>() /
                          std::max(1e-12, r.var(0, false).item<double>());
    true_reward_ = r.mean().item<double>();
    const auto keep = [&](at::Tensor& all, const at::Tensor& fresh) {
      const at::Tensor both = all.defined() ? at::cat({all, fresh}) : fresh;
      all = both.narrow(0, std::max<std::int64_t>(0, both.size(0) - config_.buffer),
                        std::min(both.size(0), config_.buffer))
                .clone();
    };
    keep(states_, x_1.to(at::kFloat));
    keep(rewards_, r);
    if (labels.defined()) keep(labels_, labels);
    at::Tensor(numbers_.at("mean")).copy_(rewards_.mean());
    at::Tensor(numbers_.at("deviation")).copy_(rewards_.std(0, false).clamp_min(1e-6));
  }
  fit(context.streams, step, size() == config_.samples ? 10 * config_.fits : config_.fits);
}

void Surrogate::fit(const RandomStreams& streams, std::int64_t step, std::int64_t count) {
  const at::AutoGradMode grad(true);
  const std::int64_t n = std::min(kFitBatch, size());
  for (std::int64_t i = 0; i < count; ++i) {
    const at::Tensor u =
        streams.uniform(Purpose::kSubset, kRefreshKey + static_cast<std::uint32_t>(step), i * n, n,
                        {}, at::kDouble);
    const at::Tensor rows = (u * static_cast<double>(size())).to(at::kLong).clamp_max(size() - 1);
    const at::Tensor wanted =
        (rewards_.index_select(0, rows) - numbers_.at("mean")) / numbers_.at("deviation");
    const at::Tensor labels = labels_.defined() ? labels_.index_select(0, rows) : at::Tensor();
    const at::Tensor loss =
        (network(weights_, states_.index_select(0, rows), labels) - wanted).square().mean();
    std::vector<at::Tensor> gradients =
        torch::autograd::grad({loss}, weights_.tensors(), {}, false, false, /*allow_unused=*/true);
    optimizer_->step(gradients, config_.learning_rate);
  }
}

void Surrogate::add_metrics(std::map<std::string, double>& metrics) const {
  metrics["surrogate_r2"] = r2_;
  metrics["true_reward"] = true_reward_;
}

ParameterSet Surrogate::state() const {
  ParameterSet out;
  if (size() == 0) return out;
  for (const auto& [name, tensor] : weights_) out.add("weights." + name, tensor.detach());
  for (const auto& [name, tensor] : optimizer_->state()) out.add("optimizer." + name, tensor);
  out.add("mean", numbers_.at("mean"));
  out.add("deviation", numbers_.at("deviation"));
  out.add("states", states_);
  out.add("rewards", rewards_);
  if (labels_.defined()) out.add("labels", labels_);
  out.add("last", at::tensor(std::vector<double>{r2_, true_reward_}, at::kDouble));
  return out;
}

void Surrogate::restore(const ParameterSet& state) {
  if (!state.contains("states")) return;
  {
    const at::NoGradGuard no_grad;
    assign(weights_, tensors_below(state, "weights."), "surrogate");
    at::Tensor(numbers_.at("mean")).copy_(state.at("mean"));
    at::Tensor(numbers_.at("deviation")).copy_(state.at("deviation"));
  }
  optimizer_->restore(tensors_below(state, "optimizer."));
  states_ = state.at("states").clone();
  rewards_ = state.at("rewards").clone();
  if (state.contains("labels")) labels_ = state.at("labels").clone();
  r2_ = state.at("last")[0].item<double>();
  true_reward_ = state.at("last")[1].item<double>();
}

}  // namespace tiltflow
