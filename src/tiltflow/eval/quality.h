// Quality and diversity of samples in the feature space of a named network.
#pragma once

#include <functional>
#include <string>

#include "tiltflow/eval/statistics.h"
#include "tiltflow/tensor/random.h"

namespace tiltflow {

struct FeatureNetwork {
  std::string name;
  std::function<at::Tensor(const at::Tensor& images)> features;  // [N, C, H, W] in [0, 1] -> [N, F]
};
// "pixels" (the image itself), a classifier file (its last hidden layer) or a CLIP image tower. Throws kBadFile.
FeatureNetwork make_feature_network(const std::string& name);
// In pieces on all cores, without a graph.
at::Tensor features_of(const FeatureNetwork& network, const at::Tensor& images);

// Mean distance between two different samples; U-statistic with its standard error. Cost: N^2 distances.
Estimate diversity(const at::Tensor& features);

// Frechet distance without its bias in the number of samples: distances of nested subsets of 5 sizes, extrapolated in 1/N
// (Chong & Forsyth 2020); standard error over 8 random orders, which share samples. Needs 100 samples or more, else kFailure.
Estimate frechet_extrapolated(const at::Tensor& features, const FeatureMoments& reference, const RandomStreams& streams);

// Share of samples inside the k-nearest-neighbour balls of the real ones, and the other way round (Kynkaanniemi et al. 2019).
struct PrecisionRecall {
  Estimate precision, recall;
};
PrecisionRecall precision_recall(const at::Tensor& features, const at::Tensor& real, std::int64_t k = 3);

}  // namespace tiltflow
