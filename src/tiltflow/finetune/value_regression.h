// Value regression: a scalar network is fitted to E[exp r(X_1) | X_t = x], x_t noised from samples
// of the base, and its gradient is the control (the policy is a control network of kind potential).
// No reward gradient, no call of the base in the loss. With V = log_z + alpha N the loss is
//   exp(V - log_z) - exp(r - log_z) (V - log_z),
// a Bregman divergence whose minimiser is the conditional mean; at the optimum the tuned velocity
// v_base + eta grad V is that of p*. Weighted by exp(r): for mild tilts.
#pragma once

#include "tiltflow/finetune/replay.h"

namespace tiltflow {

struct ValueConfig {
  ReplayConfig replay;
  std::int64_t noisings = 8;  // of a drawn end point
};
void bind(Fields& f, ValueConfig& c);

class ValueRegression final : public FinetuneMethod {
 public:
  explicit ValueRegression(ValueConfig config) : config_(config), buffer_(config.replay) {}
  std::string name() const override { return "value-regression"; }
  MethodNeeds needs() const override {
    return {false, false, false, /*group=*/1, /*on_policy=*/true, /*potential=*/true};
  }
  double training_calls(const TransitionTable&) const override {
    return 0;
  }  // the small network only
  void begin_step(const FinetuneContext& context, std::int64_t step,
                  std::int64_t pass) override;  // throws kConfig for other policies
  Batch collect(const FinetuneContext& context, std::int64_t step, std::int64_t first,
                std::int64_t n, bool will_reuse) override;
  LossReport loss(const FinetuneContext& context, const Batch& batch, std::int64_t total) override;
  void end_step(std::map<std::string, double>& metrics) override { finish_batch_metrics(metrics); }
  std::int64_t period() const override { return config_.replay.refresh; }
  ParameterSet state() const override { return buffer_.state(); }
  void restore(const ParameterSet& state) override { buffer_.restore(state); }

 private:
  ValueConfig config_;
  ReplayBuffer buffer_;
};

}  // namespace tiltflow
