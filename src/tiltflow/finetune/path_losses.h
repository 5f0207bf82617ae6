// Losses on whole paths, without reward gradients (Nusken & Richter 2021; Domingo-Enrich et al.
// 2023). With the memoryless chain P of the base and P_u of the tuned model, Y = r - log dP_u/dP
// along a path is constant exactly when P_u is the tilted path law.
//   log-variance       variance of Y over the batch; on-policy its gradient is twice that of the
//   relative entropy trajectory-balance mean (Y - y0)^2, y0 a running mean of Y (an estimate of log
//   Z) variance           variance of exp Y over the batch, in units of its mean cross-entropy -w
//   log dP_u/dP, w = exp(r - log dP_old/dP) normalised: weighted maximum likelihood, mode-covering
#pragma once

#include "tiltflow/config/fields.h"
#include "tiltflow/finetune/method.h"

namespace tiltflow {

struct PathLossConfig {
  double trust_region = 0;  // cross-entropy: nats, see path_weights
};
void bind_for(Fields& f, PathLossConfig& c, const std::string& method);

class PathLoss final : public FinetuneMethod {
 public:
  explicit PathLoss(std::string method, PathLossConfig config = {});
  std::string name() const override { return method_; }
  MethodNeeds needs() const override { return {false, false, true}; }
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

 private:
  std::string method_;
  PathLossConfig config_;
  double y0_;  // NaN before the first step
};
const std::vector<std::string>& path_loss_methods();

}  // namespace tiltflow
