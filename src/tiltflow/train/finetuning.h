// Fine-tuning as a run: configuration, the objective that feeds a method to the trainer, evaluation
// on the way.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tiltflow/finetune/methods.h"
#include "tiltflow/models/flow_model.h"
#include "tiltflow/models/runtime_config.h"
#include "tiltflow/sampler/fields.h"
#include "tiltflow/train/mode_preservation.h"
#include "tiltflow/train/surrogate.h"
#include "tiltflow/train/trainer.h"

namespace tiltflow {

// Classifier-free guidance in fine-tuning. What is tilted by exp(r):
//   none          the conditional law
//   full          the guided law: guidance in rollouts, adjoint and control. Sound.
//   trajectories  rollouts are guided, adjoint and control are not (as the official Stable
//   Diffusion code). A mismatch. sampling      the conditional law; evaluations and pictures are
//   guided
struct FinetuneGuidance {
  std::string mode = "none";
  Guidance guidance;
};
void bind(Fields& f, FinetuneGuidance& c);

struct EvaluationConfig {
  std::int64_t every = 10;
  std::int64_t samples = 128;
  std::int64_t base_samples = 512;
  std::string ode;  // deterministic sampler whose reward is logged too; "" = none
  std::int64_t ode_steps = 10;
  double ode_guidance = 1;  // its own guidance
};
void bind(Fields& f, EvaluationConfig& c);

// The tilted-law check at the end: see eval/tilted_check.h.
struct CheckConfig {
  std::int64_t base_samples = 1536;
  std::int64_t tuned_samples = 1536;
  std::string judge;             // classifier for class shares and intra-class variance; "" = none
  std::string ode = "ode-heun";  // deterministic sampler compared as well; "" = none
  std::int64_t ode_steps = 10;
  double standard_errors = 3;       // agreement: within this many combined standard errors ...
  double allowance = 0.1;           // ... plus this share of the shift from p_base to p*
  std::int64_t per_condition = 24;  // samples of a condition: see sampler/condition_groups
  std::int64_t conditions = 64;     // at most, when they have to be chosen
};
void bind(Fields& f, CheckConfig& c);

struct FinetuneConfig {
  std::int64_t seed = 0;
  std::int64_t batch = 48;
  std::int64_t micro_batch = 24;
  std::int64_t buffer_passes = 1;
  FlowModelConfig model;
  AutoencoderConfig decoder;
  std::vector<RewardTerm> reward;  // one [[reward]] section each; at least one
  LabelConfig labels;
  SamplerConfig sampler;
  PolicyConfig policy;
  FinetuneGuidance guidance;
  MethodConfig method;
  SurrogateConfig surrogate;
  ModesConfig modes;
  EvaluationConfig evaluation;
  CheckConfig check;
  ComputeConfig compute;
  TrainConfig train;
};
void bind(Fields& f, FinetuneConfig& c);

// Everything a configuration describes, loaded and checked: model, path, reward, sampler, labels.
struct FinetuneSetup {
  FinetuneConfig config;
  FlowModel flow;
  std::shared_ptr<const StateReward> reward;
  bool reward_gradient = true;  // the reward has one: declared, or found at two samples of noise
  TransitionTable table;
  RandomStreams streams{0};
  LabelSource labels_at(std::uint32_t step) const;  // labels of the samples of one step
  // The fields of training (rollout included) and those of evaluation, guided as the configuration
  // says.
  Policy for_training(Policy policy) const;
  std::shared_ptr<const VelocityField> for_evaluation(
      std::shared_ptr<const VelocityField> field) const;
  std::shared_ptr<const VelocityField> for_check(
      std::shared_ptr<const VelocityField> field) const;  // the law that is tilted
};
// Whether the method works with the gradient of the reward itself, not with a learned stand-in.
bool needs_reward_gradient(const FinetuneConfig& config);
// Throws kConfig and kBadFile; collects nothing, trains nothing.
FinetuneSetup set_up(const FinetuneConfig& config);

class FinetuneObjective final : public Objective {
 public:
  FinetuneObjective(const FinetuneSetup& setup, Policy policy,
                    std::unique_ptr<FinetuneMethod> method, double log_z = 0);
  const ParameterSet& trainable() const override { return policy_.trainable; }
  std::int64_t begin_step(std::int64_t step) override;
  LossReport micro_batch(std::int64_t i) override;
  void end_step(std::map<std::string, double>& metrics) override;
  bool at_checkpoint() const override { return (step_ + 1) % setup_.config.buffer_passes == 0; }
  ParameterSet state() const override;
  void restore(const ParameterSet& state) override;
  const Policy& policy() const { return policy_; }

 private:
  FinetuneContext context() const {
    return context(surrogate_ ? surrogate_->reward() : *setup_.reward);
  }
  FinetuneContext context(const StateReward& reward) const;
  const FinetuneSetup& setup_;
  Policy policy_;
  std::shared_ptr<CountingField> counted_base_, counted_tuned_;
  std::unique_ptr<FinetuneMethod> method_;
  std::unique_ptr<Surrogate> surrogate_;     // or null
  std::unique_ptr<ModePreservation> modes_;  // or null
  LabelSource labels_;
  std::vector<Batch> buffer_;
  std::int64_t step_ = 0;
  std::int64_t pass_ = 0;
  bool collects_ =
      true;  // this step draws its batch; a run that goes on within one has none to reuse
  double log_z_;
};

// Network evaluations per sample and optimiser step, a backward pass counted as the policy says:
// measured on one piece of work (a mean over the steps after which calls repeat: `buffer_passes`,
// replay, learned rewards). Random windows (draft with random_last, refl, drtune) are those of the
// first steps.
double measure_evaluations(const FinetuneSetup& setup);

// The whole run; returns the averaged trainable weights. Writes model.safetensors (and the PEFT
// folder adapter/ for lora).
TrainResult finetune(const FinetuneSetup& setup, Run& run);

}  // namespace tiltflow
