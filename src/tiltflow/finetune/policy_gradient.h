// Flow-GRPO (Liu et al. 2025): the sampler's steps are Gaussian transitions, whose densities under
// the current and the collecting policy make a clipped policy gradient. L = mean_k max(-A rho_k, -A
// clip(rho_k, 1 - c, 1 + c)) + kl KL_k. As published a step's KL is not charged to the steps before
// it, so the fixed point is no law in closed form. With kl_to_go, advantages "centred" in large
// groups, no clipping and summed densities on a memoryless sampler it is p_base exp(r / kl): the
// tilted law for kl = 1. grpo-guard (arXiv 2510.22319): the log-ratio of a step loses its negative
// mean and its step-dependent size, log rho_k = c_k <v - v_old, xi_k>, so that one clip range means
// the same at every step, and losses are divided by c_k, so that all steps pull alike.
#pragma once

#include "tiltflow/config/fields.h"
#include "tiltflow/finetune/advantages.h"
#include "tiltflow/finetune/method.h"

namespace tiltflow {

struct PolicyGradientConfig {
  AdvantageConfig advantage;
  std::int64_t loss_steps =
      0;  // time steps per iteration, drawn anew; 0 = all (the fast variant takes 1 or 2)
  double clip = 1e-4;  // c; 0 = none. Belongs to mean densities
  std::string density =
      "mean";        // of log-densities over the sample's entries: mean, as published, or sum
  double kl = 0.04;  // weight of the exact KL of a step (summed over entries with "sum", averaged
                     // with "mean")
  bool kl_to_go = false;  // the KL of later steps counts against a step's advantage: the gradient
                          // of E[r - kl KL] itself. Costs K base calls instead of n
};
void bind(Fields& f, PolicyGradientConfig& c);

class PolicyGradient final : public FinetuneMethod {
 public:
  explicit PolicyGradient(PolicyGradientConfig config, bool guard = false)
      : config_(std::move(config)), guard_(guard) {}
  std::string name() const override { return guard_ ? "grpo-guard" : "flow-grpo"; }
  MethodNeeds needs() const override {
    return {false, false, true, config_.advantage.kind == "value" ? 1 : config_.advantage.group};
  }
  bool adds_extra_reward() const override { return true; }
  bool loss_falls() const override { return false; }
  double training_calls(const TransitionTable& table) const override;
  void begin_step(const FinetuneContext& context, std::int64_t step, std::int64_t pass) override;
  Batch collect(const FinetuneContext& context, std::int64_t step, std::int64_t first,
                std::int64_t n, bool will_reuse) override;
  LossReport loss(const FinetuneContext& context, const Batch& batch, std::int64_t total) override;
  void end_step(std::map<std::string, double>& metrics) override { finish_batch_metrics(metrics); }

 private:
  double share_of(const Batch& batch) const;  // of an entry in a step's density and KL
  PolicyGradientConfig config_;
  bool guard_;
  std::vector<std::int64_t> subset_;
};

}  // namespace tiltflow
