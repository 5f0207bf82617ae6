// Stochastic optimal control matching (Domingo-Enrich et al. 2023, arXiv 2312.02027) for the chain
// of a transition table. With e_j = (X_{j+1} - f_j(X_j)) / s_j^2 and q_j = (df_j/dx)^T e_j, f_j the
// base's step, and any numbers M_{k,j} (the reparameterisation "matrices", multiples of the
// identity here),
//   g_k = q_{k+1} + sum_{k+1 < j < K} M_{k,j} (q_j - e_{j-1}) + M_{k,K} (grad r(X_K) - e_{K-1})
// has the conditional mean E*[grad V_{k+1}] under the tilted path law, whatever the M: its terms
// behind M have mean zero there. The loss is
//   w sum_k | c_k (v - v_base) / s_k - s_k g_k |^2,   w = exp(r) dP/dP_old normalised;
// its optimum is the tilted law of the chain. What M changes is the variance:
//   constant     M = 1
//   exponential  M = exp(-gamma (t_j - t_{k+1}))
//   learned      least variance, by weighted least squares on the paths of earlier steps (the
//   control variates' coefficients) socm-adjoint g = the lean adjoint: the loss of Adjoint Matching
//   with path weights
#pragma once

#include <map>
#include <mutex>

#include "tiltflow/config/fields.h"
#include "tiltflow/finetune/method.h"

namespace tiltflow {

struct SocMatchingConfig {
  std::string matrices = "learned";
  double gamma = 1;         // exponential, and what learned starts from
  double memory = 0.9;      // learned: decay of the running sums
  double trust_region = 0;  // nats, see path_weights
};
void bind_for(Fields& f, SocMatchingConfig& c, const std::string& method);

class SocMatching final : public FinetuneMethod {
 public:
  SocMatching(std::string method, SocMatchingConfig config)
      : method_(std::move(method)), config_(std::move(config)) {}
  std::string name() const override { return method_; }
  MethodNeeds needs() const override { return {true, true, true}; }
  double training_calls(const TransitionTable& table) const override {
    return static_cast<double>(table.size());
  }
  void begin_step(const FinetuneContext& context, std::int64_t step, std::int64_t pass) override;
  Batch collect(const FinetuneContext& context, std::int64_t step, std::int64_t first,
                std::int64_t n, bool will_reuse) override;
  LossReport loss(const FinetuneContext& context, const Batch& batch, std::int64_t total) override;
  void end_step(std::map<std::string, double>& metrics) override;
  ParameterSet state() const override;
  void restore(const ParameterSet& state) override;
  const at::Tensor& matrices() const { return matrices_; }  // [K, K+1]: M_{k,j}

 private:
  bool adjoint() const { return method_ == "socm-adjoint"; }
  bool learns() const { return !adjoint() && config_.matrices == "learned"; }
  struct Pulled;
  Pulled pull_back(const FinetuneContext& context, Batch& batch, const at::Tensor& gradient) const;
  void observe(const FinetuneContext& context, const Batch& batch, const Pulled& along);
  void solve();
  std::string method_;
  SocMatchingConfig config_;
  at::Tensor start_, matrices_;  // [K, K+1] double
  at::Tensor gram_, cross_;  // running sums: [K+1, K+1] of <d_i, d_j>, [K, K+1] of <d_j, q_{k+1} -
                             // wanted>; undefined before the first step
  std::mutex mutex_;
  std::map<std::int64_t, at::Tensor> observed_;  // first sample -> [2K+1, K+1] of this step
};
const std::vector<std::string>& soc_matching_methods();

}  // namespace tiltflow
