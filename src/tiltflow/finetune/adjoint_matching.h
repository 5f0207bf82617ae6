// Adjoint Matching (Domingo-Enrich et al. 2024): regress the control on the lean adjoint.
//   loss_k = | c_k (v_tuned - v_base)(X_k, t_k) / s_k + s_k a |^2, X from the tuned sampler, a from
//   the base's Jacobian.
// With a = a_{k+1} (pairing "next") the optimum is that of the discrete chain, without
// discretisation bias.
#pragma once

#include <memory>
#include <mutex>

#include "tiltflow/config/fields.h"
#include "tiltflow/finetune/method.h"

namespace tiltflow {

struct AdjointMatchingConfig {
  std::string preset = "exact";  // exact, paper, official-sd, deterministic-control: sets the keys
                                 // below; keys given explicitly win
  std::string pairing =
      "next";  // next: a_{k+1}; same: a_k; later: the paper's eq. 41, Jacobian at the later point
  std::string terminal =
      "last";  // reward gradient at the last state, or at the noiseless prediction before it
  std::int64_t loss_steps =
      10;  // time steps per iteration and sample in the loss, drawn before sampling; 0 = all
  std::string times = "shared";  // shared: one subset for the whole batch; stratified: every sample
                                 // its own, all times alike
  double late_fraction = 0;      // share of the grid that counts as late
  std::int64_t late_steps = 0;   // how many of loss_steps are drawn from the late part
  double time_weighting = 0;  // loss_k is multiplied by (s_k/c_k)^(2 w), mean 1: 0 as published, 1
                              // plain velocity regression
  double path_weighting = 0;  // exponent of the path weights dP*/dP in the loss: 0 as published, 1
                              // the conditional mean under p* itself
  std::int64_t adjoint_stride =
      1;  // of sampler/lean_adjoint: steps that share one Jacobian; 1 = exact
  double clip_constant =
      0;  // drop the gradient of loss_k above this; 0 = off (paper: 1.6 lambda^2)
  double clip_quantile = 0;   // drop samples whose sqrt(loss) exceeds the running quantile; 0 = off
  bool clip_per_time = true;  // one quantile per time step instead of one for all
  double clip_decay = 0.9;    // of the running quantile
  std::int64_t smoothing = 0;  // reward gradients averaged over this many perturbed states; 0 = off
  double smoothing_deviation = 0.02;
  std::int64_t grid_steps = 20;  // steps of the sampler; set before binding, presets scale with it
  bool noise = true;  // of rollouts; false: deterministic control, see sampler/transition_table
  bool keep_graphs = true;  // shared times: use the velocity graphs of the rollout in the loss,
                            // saving loss_steps forwards
};
void bind(Fields& f, AdjointMatchingConfig& c);
// Values of a preset. Throws kConfig.
AdjointMatchingConfig adjoint_matching_preset(const std::string& name, std::int64_t steps);

class AdjointMatching final : public FinetuneMethod {
 public:
  explicit AdjointMatching(AdjointMatchingConfig config);
  std::string name() const override { return "adjoint-matching"; }
  MethodNeeds needs() const override { return {true, true, config_.noise}; }
  double training_calls(const TransitionTable& table) const override;
  void begin_step(const FinetuneContext& context, std::int64_t step, std::int64_t pass) override;
  Batch collect(const FinetuneContext& context, std::int64_t step, std::int64_t first,
                std::int64_t n, bool will_reuse) override;
  LossReport loss(const FinetuneContext& context, const Batch& batch, std::int64_t total) override;
  void end_step(std::map<std::string, double>& metrics) override;
  ParameterSet state() const override;
  void restore(const ParameterSet& state) override;
  const std::vector<std::int64_t>& subset() const { return subset_; }

 private:
  void gather_observed();
  // Samples of a batch whose loss has step k; `rows` undefined: all of them.
  struct Drawn {
    std::size_t k;
    at::Tensor rows;
    at::Tensor of(const at::Tensor& x) const {
      return rows.defined() ? x.index_select(0, rows) : x;
    }
  };
  std::vector<Drawn> drawn(const Batch& batch) const;
  std::vector<at::Tensor> velocities_with_graph(const FinetuneContext& context, const Batch& batch,
                                                const std::vector<Drawn>& draws) const;
  std::vector<double> time_weights(const TransitionTable& table) const;
  // 1 for rows [n] whose loss counts, 0 for those that are clipped; `root`: of the loss.
  at::Tensor kept_rows(std::size_t k, const at::Tensor& per_sample, const at::Tensor& root) const;
  static void add_time_metrics(MetricSums& metrics, const Transition& step, const Drawn& d,
                               const Batch& batch, const at::Tensor& control,
                               const at::Tensor& per_sample);
  static void add_density_change(const Transition& step, const Drawn& d, const Batch& batch,
                                 const at::Tensor& velocity, at::Tensor& log_weight);
  at::Tensor terminal_adjoint(const FinetuneContext& context, std::int64_t step, const Batch& batch,
                              const Condition& condition, at::Tensor& rewards) const;

  AdjointMatchingConfig config_;
  std::vector<std::int64_t>
      subset_;  // shared: ascending; stratified: all steps in the order of this batch
  std::int64_t wanted_ = 0;
  std::int64_t pass_ = 0;  // times per sample; use of the batch, from 0
  std::vector<double>
      thresholds_;  // running quantile per step (or one), of sqrt(loss); 0 = none yet
  std::mutex mutex_;
  std::map<std::int64_t, std::map<std::size_t, std::vector<float>>>
      observed_;  // first sample -> step -> sqrt(loss)
  std::size_t grid_size_ = 0;
};

}  // namespace tiltflow
