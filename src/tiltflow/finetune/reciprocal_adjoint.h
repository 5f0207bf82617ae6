// Sampling an unnormalised density with a replay buffer (reciprocal Adjoint Matching: adjoint
// sampling, AMDP). On a standard normal base the adjoint of a path is known from its end point, and
// tilted paths keep the base's bridges: X_t can be drawn anew from X_1. So end points and their
// reward gradients are stored, and every rollout serves many steps:
//   |v - (v_lin + (eta alpha / (alpha^2 + beta^2)) grad r(X_1))|^2.   p* = N(0, I) exp(r): with r =
//   log q - log N(0, I) (reward log-density) it is q.
#pragma once

#include "tiltflow/finetune/replay.h"

namespace tiltflow {

struct ReciprocalConfig {
  ReplayConfig replay;
  std::int64_t noisings = 4;  // of a drawn end point
  double gradient_cap = 0;    // longest reward gradient; 0 = none
};
void bind(Fields& f, ReciprocalConfig& c);

class ReciprocalAdjointMatching final : public FinetuneMethod {
 public:
  explicit ReciprocalAdjointMatching(ReciprocalConfig config)
      : config_(config), buffer_(config.replay) {}
  std::string name() const override { return "reciprocal-adjoint-matching"; }
  MethodNeeds needs() const override {
    return {true, false, false, /*group=*/1, /*on_policy=*/true, false, /*standard_normal=*/true};
  }
  double training_calls(const TransitionTable&) const override {
    return static_cast<double>(config_.noisings);
  }
  // Throws kConfig when the base is not N(0, I).
  void begin_step(const FinetuneContext& context, std::int64_t step, std::int64_t pass) override;
  Batch collect(const FinetuneContext& context, std::int64_t step, std::int64_t first,
                std::int64_t n, bool will_reuse) override;
  LossReport loss(const FinetuneContext& context, const Batch& batch, std::int64_t total) override;
  void end_step(std::map<std::string, double>& metrics) override { finish_batch_metrics(metrics); }
  std::int64_t period() const override { return config_.replay.refresh; }
  ParameterSet state() const override { return buffer_.state(); }
  void restore(const ParameterSet& state) override { buffer_.restore(state); }

 private:
  ReciprocalConfig config_;
  bool checked_ = false;
  ReplayBuffer buffer_;  // end point, gradient, reward
};

}  // namespace tiltflow
