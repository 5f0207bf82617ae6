// Methods that need end points and their rewards only (one of them their gradients), no path: end
// points of the current (lagged) policy are noised anew, x_t = alpha x_1 + beta x_0, and the
// velocity is regressed where rewards say so. y = alpha' x_1 + beta' x_0; all errors |v - y|^2.
//   rwr              exp(tau r) |v - y|^2, weights normalised: one exact step tilts the law of the
//   end points by exp(tau r). With end points of the
//                    base, or with path weights, the optimum is the tilted law itself, and (with
//                    tau = 1, untempered) log Z of the base is the normaliser. (Peters & Schaal
//                    2007; Lee et al. 2023)
//   best-of-group    |v - y|^2 of the best of each group, shared by those that tie for it
//   diffusion-nft    r |v+ - y|^2 + (1 - r) |v- - y|^2, v+- = v_old +- b (v - v_old), r in [0, 1]
//   from the advantage; minimiser
//                    v_old + E[(2r - 1)(y - v_old)] / b (Zheng et al. 2025)
//   advantage-flow   A |v - y|^2 + gamma |v - v_old|^2 + lambda |v - v_base|^2: one exact step is
//   flow matching on (gamma + A) p_old advantage-weighted-matching  max(-A rho, -A clip(rho)), rho
//   = exp(|v_old - y|^2 - |v - y|^2), + preserve |v - v_base|^2: a policy gradient whose
//                    density is the flow-matching error; first gradient A grad |v - y|^2 (AWM,
//                    arXiv 2509.25050)
//   ram              |v - (v_base + A (y - v_old))|^2; fixed point the tilted law to first order in
//   r only efficient-adjoint-matching  |v - (v_lin + (eta alpha / (alpha^2 + beta^2)) (grad r +
//   s_base(x_1) + x_1))|^2: Adjoint Matching with the linear base N(0, I),
//                    whose adjoint is known in closed form; needs grad r and the base's score near
//                    t = 1 (EAM, arXiv 2605.11480)
//   dpo              -log sigmoid(-beta/2 (e_best - e_worst)), e = |v - y|^2 - |v_base - y|^2,
//   shared noise (Wallace et al. 2023, Liu et al. 2025)
#pragma once

#include <mutex>

#include "tiltflow/config/fields.h"
#include "tiltflow/finetune/advantages.h"
#include "tiltflow/finetune/method.h"
#include "tiltflow/finetune/screening.h"

namespace tiltflow {

struct EndpointConfig {
  std::string rollouts = "policy";  // whose end points: policy or base
  std::string weights = "reward";   // rwr: exp(tau r), or path: exp(tau r) times the density ratio
                                    // of base and policy paths
  std::int64_t noisings = 4;        // of an end point
  AdvantageConfig advantage;
  ScreeningConfig screening;  // of methods that compare
  std::string pairs;          // dpo: file of stored pairs instead of rollouts (offline)
  double tau = 1;             // rwr
  double strength = 1;        // diffusion-nft: b; ram: factor on the advantage
  double gamma = 1.1;         // advantage-flow
  double preserve =
      0;            // weight of |v - v_base|^2: lambda of advantage-flow, the penalty of the others
  double clip = 0;  // advantage-weighted-matching
  double trust_region = 0;   // rwr: nats, see path_weights
  double beta = 100;         // dpo
  bool soft_labels = false;  // dpo: sigmoid(r_best - r_worst) instead of 1
  bool self_weight = false;  // diffusion-nft, advantage-flow: divide by the mean absolute error of
                             // the data prediction
};
void bind_for(Fields& f, EndpointConfig& c, const std::string& method);

class EndpointRegression final : public FinetuneMethod {
 public:
  EndpointRegression(std::string method, EndpointConfig config);
  std::string name() const override { return method_; }
  MethodNeeds needs() const override {
    return {linear_base(), false, config_.weights == "path", group_size()};
  }
  bool adds_extra_reward() const override {
    return !linear_base() && config_.weights != "path" && config_.screening.candidates == 0 &&
           config_.pairs.empty();
  }
  bool rewards_are_the_policys() const override {
    return config_.rollouts == "policy" && config_.pairs.empty() &&
           config_.screening.candidates == 0;
  }
  bool loss_falls() const override {
    return linear_base() || config_.rollouts == "base" || !config_.pairs.empty();
  }
  double training_calls(const TransitionTable&) const override {
    return static_cast<double>(config_.noisings);
  }
  void check_files(const std::vector<std::int64_t>& sample_shape) const override;
  void begin_step(const FinetuneContext&, std::int64_t, std::int64_t) override {}
  Batch collect(const FinetuneContext& context, std::int64_t step, std::int64_t first,
                std::int64_t n, bool will_reuse) override;
  LossReport loss(const FinetuneContext& context, const Batch& batch, std::int64_t total) override;
  void end_step(std::map<std::string, double>& metrics) override { finish_batch_metrics(metrics); }

 private:
  bool linear_base() const { return method_ == "efficient-adjoint-matching"; }
  bool compares() const { return method_ != "rwr" && !linear_base(); }
  std::int64_t group_size() const;  // samples that are compared; 1 = none
  bool needs_old() const {
    return method_ == "diffusion-nft" || method_ == "advantage-flow" ||
           method_ == "advantage-weighted-matching" || method_ == "ram";
  }
  bool needs_base() const { return config_.preserve > 0 || method_ == "ram" || method_ == "dpo"; }
  at::Tensor per_sample(const Batch& batch, std::size_t j, const at::Tensor& v,
                        const at::Tensor& weights) const;  // [n]; weights [n]: of rwr
  at::Tensor preference_loss(const at::Tensor& rewards, const at::Tensor& excess) const;
  // End points of a batch, and what making them tells: where they start, path densities.
  struct EndPoints {
    at::Tensor x_0, x_1, log_ratio;
  };
  EndPoints end_points(const FinetuneContext& context, const VelocityField& sampler,
                       std::int64_t step, bool will_reuse, Batch& batch);
  // Scores the end points; minus the adjoint of a linear base there, where the method needs it.
  at::Tensor score(const FinetuneContext& context, const EndPoints& ends, Batch& batch) const;
  at::Tensor stored_pairs(const FinetuneContext& context, std::uint32_t key, Batch& batch);
  std::string method_;
  EndpointConfig config_;
  std::mutex mutex_;
  ParameterSet pairs_;  // of config_.pairs, read once
};
const std::vector<std::string>& endpoint_methods();

}  // namespace tiltflow
