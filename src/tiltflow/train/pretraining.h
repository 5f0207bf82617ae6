// Objectives for training from data: flow matching for a velocity model, cross-entropy for the
// judge.
#pragma once

#include <memory>
#include <vector>

#include "tiltflow/flow/path.h"
#include "tiltflow/io/dataset.h"
#include "tiltflow/models/classifier/classifier.h"
#include "tiltflow/models/velocity_model.h"
#include "tiltflow/tensor/random.h"
#include "tiltflow/train/objective.h"

namespace tiltflow {

// Batches of a data set in an order keyed by (seed, epoch); the last incomplete batch of an epoch
// is dropped.
class BatchOrder {
 public:
  BatchOrder(std::int64_t data_size, std::int64_t batch, RandomStreams streams);
  at::Tensor indices(std::int64_t step);  // [batch]

 private:
  std::int64_t size_, batch_;
  RandomStreams streams_;
  std::int64_t epoch_ = -1;
  std::vector<std::int64_t> order_;
};

struct FlowMatchingOptions {
  std::int64_t batch = 128;
  std::int64_t micro_batch = 32;  // micro-batch: samples per independent piece of work
  double label_dropout = 0.1;
  std::string time_sampling = "uniform";  // or "logit-normal"
  std::string prediction = "velocity";    // what the network is trained to answer
  std::string loss_weight =
      "none";  // of noise and score losses: none, velocity (eta/beta)^2, likelihood eta/beta^2
  double epsilon = -1;  // times stay this far inside [0, 1]; -1 = SiT's: 0 for velocity (vp 1e-5),
                        // else 1e-3 (vp 1e-5)
  bool flip = false;    // mirror half of the pictures, chosen anew in every step
};

// Each picture [n, C, H, W] mirrored left to right with probability one half, keyed by step and
// sample: the same whatever the pieces and workers.
at::Tensor randomly_flipped(const at::Tensor& pictures, const RandomStreams& streams,
                            std::uint32_t step, std::int64_t first);

// SiT's losses, per sample the mean over pixels: velocity |out - (alpha' x_1 + beta' x_0)|^2, noise
// w |out - x_0|^2, score w |beta out + x_0|^2. [N]. `network` is the raw network, not a velocity.
at::Tensor flow_matching_losses(const VelocityField& network, const Path& path,
                                const FlowMatchingOptions& options, const at::Tensor& x_0,
                                const at::Tensor& x_1, const at::Tensor& t,
                                const Condition& condition);
// |network(x_t, t, condition) - teacher(x_t, t, teacher_condition)|^2, per sample the mean over
// pixels. [N]. Both answer velocities. With the teacher's exact conditional velocity this has the
// gradient of flow matching in the mean, with less variance: E[v(x_t | c) | x_t] is the velocity
// without a label. No gradient reaches the teacher.
at::Tensor distillation_losses(const VelocityField& network, const VelocityField& teacher,
                               const Path& path, const at::Tensor& x_0, const at::Tensor& x_1,
                               const at::Tensor& t, const Condition& condition,
                               const Condition& teacher_condition);
// u in [0, 1] to training times.
at::Tensor training_times(const Path& path, const FlowMatchingOptions& options,
                          const at::Tensor& u);

// Data that the model, the teacher (null: none) or the classifier cannot be trained on. Throws
// kConfig.
void require_fitting_data(const VelocityModel& model, const VelocityModel* teacher,
                          const ImageDataset& data);
void require_fitting_data(const ClassifierConfig& config, const ImageDataset& data);

// The mean of these losses, of the distillation where there is a teacher. Data in [0, 1] are mapped
// to [-1, 1]. The teacher sees the labels before dropout.
class FlowMatchingObjective final : public Objective {
 public:
  FlowMatchingObjective(std::unique_ptr<VelocityModel> model, std::shared_ptr<const Path> path,
                        ImageDataset data, FlowMatchingOptions options, std::uint64_t seed,
                        std::shared_ptr<const VelocityModel> teacher = nullptr);
  const ParameterSet& trainable() const override { return trainable_; }
  std::int64_t begin_step(std::int64_t step) override;
  LossReport micro_batch(std::int64_t i) override;
  const VelocityModel& model() const { return *model_; }

 private:
  std::unique_ptr<VelocityModel> model_;
  std::shared_ptr<const VelocityModel> teacher_;
  std::shared_ptr<const Path> path_;
  ImageDataset data_;
  FlowMatchingOptions options_;
  RandomStreams streams_;
  BatchOrder order_;
  ParameterSet trainable_;
  std::int64_t step_ = 0;
  at::Tensor indices_;
};

struct ClassificationOptions {
  std::int64_t batch = 128;
  std::int64_t micro_batch = 32;
  double noise =
      0.3;  // inputs get Gaussian noise of a deviation uniform in [0, noise]: a smoother judge
  std::int64_t shift = 2;  // random translation in pixels
  double label_smoothing = 0;
  bool flip = false;
};

class ClassificationObjective final : public Objective {
 public:
  ClassificationObjective(ClassifierConfig config, ImageDataset data, ClassificationOptions options,
                          std::uint64_t seed);
  const ParameterSet& trainable() const override { return classifier_.parameters(); }
  std::int64_t begin_step(std::int64_t step) override;
  LossReport micro_batch(std::int64_t i) override;
  const Classifier& classifier() const { return classifier_; }

 private:
  Classifier classifier_;
  ImageDataset data_;
  ClassificationOptions options_;
  RandomStreams streams_;
  BatchOrder order_;
  std::int64_t step_ = 0;
  at::Tensor indices_;
};

// Fraction of images whose most likely class is the label.
double accuracy(const Classifier& classifier, const ImageDataset& data);

}  // namespace tiltflow
