// Conditional GANs by the hinge loss: the objective of `tiltflow pretrain` with kind = "gan". The
// discriminator's steps and the generator's alternate: with d discriminator steps, step s trains
// the generator when s mod (d + 1) = d.
#pragma once

#include "tiltflow/io/dataset.h"
#include "tiltflow/models/generator/gan.h"
#include "tiltflow/train/objective.h"
#include "tiltflow/train/pretraining.h"
#include "tiltflow/train/running_statistics.h"

namespace tiltflow {

struct GanTrainingOptions {
  std::int64_t batch = 128;
  std::int64_t micro_batch = 64;  // batch statistics are those of a micro-batch
  std::int64_t discriminator_steps = 1;
  bool flip = false;  // mirror half of the real pictures, chosen anew in every step
};

// Throws kConfig when the pictures or their labels do not fit the generator.
void require_gan_data(const GanConfig& config, const ImageDataset& data);

// Trainable names: generator.*, discriminator.*. Every step draws fresh noise; the images of step s
// are those of batch s / (d + 1).
class GanObjective final : public Objective {
 public:
  GanObjective(const GanConfig& config, ImageDataset data, GanTrainingOptions options,
               std::uint64_t seed, MatmulPrecision precision = MatmulPrecision::kFull);
  const ParameterSet& trainable() const override { return trainable_; }
  std::int64_t begin_step(std::int64_t step) override;
  bool trains(const std::string& name) const override;
  LossReport micro_batch(std::int64_t i) override;
  void end_step(std::map<std::string, double>& metrics) override;
  bool at_checkpoint() const override {
    return (step_ + 1) % (options_.discriminator_steps + 1) == 0;
  }
  ParameterSet state() const override;
  void restore(const ParameterSet& state) override;

  const Generator& generator() const { return *generator_; }
  const Discriminator& discriminator() const { return discriminator_; }
  // The generator with `average` of the trainable tensors and statistics made for it.
  std::unique_ptr<Generator> averaged(const ParameterSet& average) const;

 private:
  GanTrainingOptions options_;
  RandomStreams streams_;
  std::unique_ptr<Generator> generator_;
  Discriminator discriminator_;
  ImageDataset data_;
  BatchOrder order_;
  ParameterSet trainable_;
  RunningStatistics statistics_;
  std::int64_t step_ = 0;
  bool generator_turn_ = false;
  at::Tensor indices_;
};

}  // namespace tiltflow
