// Adjoint Matching before it was made lean (Domingo-Enrich et al. 2024, "basic"): the adjoint of
// the controlled chain, control cost included,
//   a_k = p a_{k+1} + J_tuned^T (c a_{k+1} + (c/s) u_k) - J_base^T (c/s) u_k,   u_k = c (v_tuned -
//   v_base) / s,   a_K = -grad r,
// and 1/2 |u_k + s a_{k+1}|^2 with X and a constant. Its gradient is exactly that of the discrete
// adjoint, with one step's graph at a time instead of the whole chain's; the lean adjoint agrees
// with it in expectation at the optimum only. continuous-adjoint pairs the control with a_k
// instead, as an Euler step of the adjoint's differential equation does: the same gradient as the
// steps get finer, biased by one step's noise before.
#pragma once

#include "tiltflow/finetune/method.h"

namespace tiltflow {

class BasicAdjointMatching final : public FinetuneMethod {
 public:
  explicit BasicAdjointMatching(bool continuous = false) : continuous_(continuous) {}
  std::string name() const override {
    return continuous_ ? "continuous-adjoint" : "basic-adjoint-matching";
  }
  MethodNeeds needs() const override { return {true, true, true, /*group=*/1, /*on_policy=*/true}; }
  double training_calls(const TransitionTable& table) const override {
    return static_cast<double>(table.size());
  }
  void begin_step(const FinetuneContext&, std::int64_t, std::int64_t) override {}
  Batch collect(const FinetuneContext& context, std::int64_t step, std::int64_t first,
                std::int64_t n, bool will_reuse) override;
  LossReport loss(const FinetuneContext& context, const Batch& batch, std::int64_t total) override;
  void end_step(std::map<std::string, double>& metrics) override { finish_batch_metrics(metrics); }

 private:
  bool continuous_;
};

}  // namespace tiltflow
