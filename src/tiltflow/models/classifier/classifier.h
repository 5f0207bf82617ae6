// The judge: a small convolutional classifier with smooth non-linearities, so that its
// log-probabilities have useful gradients. Its penultimate layer is the feature space of the
// Frechet distance.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "tiltflow/nn/linear.h"
#include "tiltflow/tensor/parameters.h"
#include "tiltflow/tensor/random.h"

namespace tiltflow {

struct ClassifierConfig {
  std::int64_t input_size = 28;
  std::int64_t in_channels = 1;
  std::int64_t width = 24;
  std::int64_t features = 84;
  std::int64_t num_classes = 10;
};

// conv 3x3 (width) - SiLU - average pool - conv 3x3 (2 width) - SiLU - average pool - conv 3x3 (2
// width) - SiLU - linear (features) - SiLU - linear (classes). Images [N, C, S, S] in [0, 1], S a
// multiple of 4.
class Classifier {
 public:
  Classifier(ClassifierConfig config, ParameterSet parameters);
  at::Tensor logits(const at::Tensor& images) const;    // [N, C, S, S] -> [N, classes]
  at::Tensor features(const at::Tensor& images) const;  // [N, C, S, S] -> [N, features]
  const ClassifierConfig& config() const { return config_; }
  const ParameterSet& parameters() const { return parameters_; }

 private:
  at::Tensor hidden(const at::Tensor& images) const;  // features, where the weights are
  ClassifierConfig config_;
  ParameterSet parameters_;
};

ClassifierConfig classifier_config_from_args(const std::map<std::string, std::string>& args);
std::map<std::string, std::string> to_args(const ClassifierConfig& config);
ParameterSet init_classifier(const ClassifierConfig& config, const RandomStreams& streams);

}  // namespace tiltflow
