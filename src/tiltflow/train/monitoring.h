// What a fine-tuning run shows on the way: base statistics at the start; figures and pictures of
// the averaged weights on fixed noise at intervals.
#pragma once

#include "tiltflow/sampler/condition_groups.h"
#include "tiltflow/train/finetuning.h"
#include "tiltflow/train/run.h"

namespace tiltflow {

// Statistics of base samples that metrics refer to.
struct BaseStatistics {
  double reward = 0;
  double reward_se = 0;  // E_base r
  double log_z = 0;
  double log_z_se = 0;                     // log E_base exp(r)
  double ess = 0;                          // effective sample size of the importance weights
  std::int64_t samples = 0;                // that were drawn
  std::int64_t conditions = 1;             // labels they are of
  std::map<std::string, double> unscaled;  // metrics base_reward_unscaled*, see train/reward_terms
  std::vector<RunWarning>
      warnings;  // what the samples say about reward and scale; empty when read back
};
// Labels of base samples and of evaluations: both measure the same laws (sampler/condition_groups).
ConditionGroups evaluation_groups(const FinetuneSetup& setup);
// Base samples of a key that no training step uses; also checks the reward on some of them (see
// check_reward).
BaseStatistics base_statistics(const FinetuneSetup& setup, const VelocityField& base);
// What base_statistics found when the run began. Throws kBadFile.
BaseStatistics stored_base_statistics(const Run& run);
std::map<std::string, double> metrics_of(const BaseStatistics& base);
// What warnings on the way are measured against.
RunFacts facts_of(const FinetuneSetup& setup, const BaseStatistics& base);

class Monitor {
 public:
  Monitor(const FinetuneSetup& setup, const Policy& policy, BaseStatistics base, Run& run)
      : setup_(setup), policy_(policy), base_(base), run_(run), groups_(evaluation_groups(setup)) {}
  // Metrics eval_*: reward, control cost and gaps under the stochastic sampler, reward under the
  // deterministic one, range of the samples. Returned to be logged. Pictures: samples, base beside
  // tuned from the same noise and labels with rewards, |adjoint| over the image at five times.
  // Pictures show Draws::prediction, figures are of the samples. Only the first process answers;
  // the others draw and score their share.
  std::map<std::string, double> evaluate(const ParameterSet& average, std::int64_t step);

 private:
  void pictures(const Draws& draws, const at::Tensor& rewards, const VelocityField& tuned,
                const VelocityField& base, std::int64_t step);
  void compare_pictures(const Draws& tuned, const at::Tensor& rewards, const VelocityField& base,
                        std::int64_t step);
  void heat_maps(const VelocityField& tuned, const VelocityField& base, std::int64_t step);
  at::Tensor rewards_of_ode(const std::shared_ptr<const VelocityField>& tuned,
                            DrawOptions options) const;
  LabelSource labels() const;
  std::int64_t samples() const;
  const FinetuneSetup& setup_;
  Policy policy_;
  BaseStatistics base_;
  Run& run_;
  ConditionGroups groups_;
  at::Tensor base_images_, base_rewards_;  // of the comparison, drawn once
};

}  // namespace tiltflow
