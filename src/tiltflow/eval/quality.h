// Quality and diversity of samples in the feature space of a named network.
#pragma once

#include <filesystem>
#include <functional>
#include <string>

#include "tiltflow/reward/state_reward.h"
#include "tiltflow/tensor/random.h"
#include "tiltflow/tensor/statistics.h"

namespace tiltflow {

struct FeatureNetwork {
  std::string name;
  std::function<at::Tensor(const at::Tensor& images)> features;  // [N, C, H, W] in [0, 1] -> [N, F]
};
// "pixels" (the image itself), a classifier file (its last hidden layer) or a CLIP image tower.
// Throws kBadFile.
FeatureNetwork make_feature_network(const std::string& name);
// Feature statistics of real images. Read: a file of `write_moments`, or an npz with mu and sigma
// (pytorch-fid and others; its count is unknown, 0). Throws kBadFile.
FeatureMoments read_moments(const std::filesystem::path& file);
// Fewer than two pictures have no covariance: kBadFile, naming `what`.
void require_two_pictures(std::int64_t pictures, const std::string& what);
// "", or a sentence that the covariance is singular, since there are no more pictures than
// features.
std::string singular_note(std::int64_t pictures, std::int64_t features, const std::string& what);
// Throws kBadFile when the network makes of the model's states (of `shape`, one sample) another
// number of features than the reference has.
void require_same_features(const FeatureNetwork& network, const FeatureMoments& reference,
                           at::IntArrayRef shape, const Decoder& decode = identity_decoder());
// By its suffix: .npz (mu, sigma) or safetensors (mean, covariance, count, the network's name as
// metadata). Atomic.
void write_moments(const std::filesystem::path& file, const FeatureMoments& moments,
                   const std::string& network);

// [N, F] of images, or of the images that `decode` makes of states (clamped to [0, 1]); in pieces
// on all cores, without a graph.
at::Tensor features_of(const FeatureNetwork& network, const at::Tensor& states,
                       const Decoder& decode = identity_decoder());

// Mean distance between two different samples; U-statistic with its standard error. Cost: N^2
// distances.
Estimate diversity(const at::Tensor& features);

// Frechet distance without its bias in the number of samples: distances of nested subsets of 5
// sizes, extrapolated in 1/N (Chong & Forsyth 2020); standard error over 8 random orders, which
// share samples. Needs 100 samples or more, else kFailure.
Estimate frechet_extrapolated(const at::Tensor& features, const FeatureMoments& reference,
                              const RandomStreams& streams);

// Share of samples inside the k-nearest-neighbour balls of the real ones, and the other way round
// (Kynkaanniemi et al. 2019).
struct PrecisionRecall {
  Estimate precision, recall;
};
PrecisionRecall precision_recall(const at::Tensor& features, const at::Tensor& real,
                                 std::int64_t k = 3);

}  // namespace tiltflow
