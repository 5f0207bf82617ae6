// Fine-tuning a one-step generator on pairs of noise and target, and the alternating loop of
// assigning and fine-tuning. One configuration serves assign, sft, em and align-noise.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "tiltflow/models/runtime_config.h"
#include "tiltflow/noise/align.h"
#include "tiltflow/noise/assign_run.h"
#include "tiltflow/noise/flow_generator.h"
#include "tiltflow/train/pretraining.h"
#include "tiltflow/train/running_statistics.h"
#include "tiltflow/train/trainer.h"

namespace tiltflow {

struct SftConfig {
  std::string assigned;          // folder of `tiltflow assign` (sft; em makes its own)
  std::string mode = "matched";  // matched: z is the assigned noise; direct: fresh noise for every
                                 // target, the baseline that collapses
  std::int64_t batch = 64;
  std::int64_t micro_batch = 32;
  double mse = 1;
  double l1 = 0;           // of the target
  double preserve = 0.25;  // mean squared distance to the starting generator on fresh noise
  double anchor = 0;       // the same to `anchor_file` (em: the generator of the first round)
  std::string anchor_file;
  std::string batch_norm = "frozen";  // or train: statistics of the batch, as the reference does
  double validation = 0.1;  // share of the pairs held out; the best weights on them are the result.
                            // 0: none, the last weights
  std::int64_t evaluate_every = 50;
  std::string policy =
      "full";  // or lora: low-rank changes of every weight with two dimensions or more
  std::vector<std::string> trainable = {
      "*"};  // full: tensors that may change; lora: weights that get an adapter
  std::int64_t rank = 8;
  double alpha = 8;
};
void bind(Fields& f, SftConfig& c);

struct EmConfig {
  std::int64_t rounds = 3;
  bool warm_start = true;  // noises continue from the round before; without, the objective may rise
  std::int64_t line_search = 4;  // M-step: full step, half, quarter, ... this many are tried; none
                                 // that helps: the weights stay
};
void bind(Fields& f, EmConfig& c);

struct OneStepConfig {
  std::int64_t seed = 0;
  GeneratorConfig generator;
  TargetsConfig targets;
  std::string features;  // classifier file for assign.feature; "" = none
  AssignConfig assign;
  SftConfig sft;
  EmConfig em;
  AlignConfig align;
  std::vector<RewardTerm> reward, held_out;  // align-noise: what is optimised, what is only watched
  ComputeConfig compute;
  TrainConfig train;
};
void bind(Fields& f, OneStepConfig& c);

FeatureFunction feature_function(
    const std::string& file);  // last hidden layer of a classifier file; empty for ""

// A generator's tuned weights as a function of what is trained.
class GeneratorPolicy {
 public:
  GeneratorPolicy(std::shared_ptr<const Generator> base, const SftConfig& config,
                  const RandomStreams& streams);  // throws kConfig when nothing matches
  const ParameterSet& trainable() const { return trainable_; }
  ParameterSet weights(const ParameterSet& trained)
      const;  // all tensors of the generator; with graph when `trained` has one
  std::unique_ptr<Generator> generator(const ParameterSet& trained) const {
    return base_->rebind(weights(trained));
  }

 private:
  std::shared_ptr<const Generator> base_;
  bool lora_;
  double scale_ = 1;
  ParameterSet trainable_;
};

// loss = mse |G(z, y) - x|^2 + l1 |G(z, y) - x| + preserve |G(n, y) - G_0(n, y)|^2 + anchor |G(n,
// y) - G_a(n, y)|^2, means over entries; n fresh.
class SftObjective final : public Objective {
 public:
  SftObjective(std::shared_ptr<const Generator> base, std::shared_ptr<const Generator> anchor,
               AssignedSet pairs, const SftConfig& config, std::uint64_t seed);
  const ParameterSet& trainable() const override { return policy_.trainable(); }
  std::int64_t begin_step(std::int64_t step) override;
  LossReport micro_batch(std::int64_t i) override;
  void end_step(std::map<std::string, double>&) override { statistics_.take(); }
  ParameterSet state() const override;
  void restore(const ParameterSet& state) override;

  // Mean matched loss (mse and l1 terms) of the held-out pairs with these weights (direct: from
  // fresh noise, always the same); remembers the best. NaN without held-out pairs.
  double validate(const ParameterSet& trained);
  bool has_validation() const { return held_out_.defined() && held_out_.size(0) > 0; }
  double best_loss() const { return best_loss_; }
  ParameterSet best()
      const;  // all tensors of the best generator, its statistics at that time among them
  const GeneratorPolicy& policy() const { return policy_; }
  std::int64_t training_pairs() const { return training_.size(0); }

 private:
  at::Tensor matched(const at::Tensor& made, const at::Tensor& wanted) const;  // [N]
  at::Tensor made_by(const Generator& generator, const at::Tensor& z, const at::Tensor& labels,
                     std::int64_t piece);
  SftConfig config_;
  RandomStreams streams_;
  std::shared_ptr<const Generator> base_, anchor_;
  AssignedSet pairs_;
  at::Tensor training_, held_out_;  // indices
  GeneratorPolicy policy_;
  RunningStatistics statistics_;
  std::unique_ptr<BatchOrder> order_;
  ParameterSet best_, best_statistics_;
  double best_loss_;
  std::int64_t step_ = 0;
  at::Tensor indices_;
};

struct SftResult {
  std::filesystem::path file;  // the tuned generator
  double validation = 0;       // of the held-out pairs; infinite without
};
// The whole run: metrics, checkpoints, pictures; OUT/model.safetensors is the best (or last)
// generator.
SftResult sft(std::shared_ptr<const Generator> generator, std::shared_ptr<const Generator> anchor,
              const AssignedSet& pairs, const OneStepConfig& config, Run& run);

struct EmRound {
  double after_assign = 0;
  double after_train = 0;
  double step = 0;  // J = mean assignment loss; step: accepted share of the M-step, 0 = rejected
};
// round-01/assign, round-01/sft, round-01/model.safetensors, ..., model.safetensors, em.json. With
// a warm start J never rises: noises and weights are only replaced by better ones. Finished halves
// are kept when the same command runs again. `start` identifies it.
std::vector<EmRound> run_em(const OneStepConfig& config, const std::filesystem::path& out,
                            const RunStart& start);

}  // namespace tiltflow
