// Statistics with standard errors: means, weighted (self-normalised importance) estimates by the
// delete-a-group jackknife, and the Frechet distance of feature sets.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <string>
#include <vector>

namespace tiltflow {

struct Estimate {
  double value = 0;
  double se = 0;
};

Estimate mean_estimate(const at::Tensor& x);  // [N]

// Mean over several seeds, each with its values [N]. The standard error is the larger of two: that
// of the seeds' means, which contains what differs between seeds, and that of all values, because
// two or three seeds may agree by chance.
Estimate estimate_over_seeds(const std::vector<at::Tensor>& values);

// statistic(indices, indices) -> values of two sets of samples, the second of which may be empty.
// The standard error of every value comes from leaving out one of `groups` interleaved groups at a
// time; it is right for weighted means, ratios and variances, too. Samples of the same number
// belong together (drawn from the same noise): both sets lose them at once, so that differences
// between the sets get the error that they have.
using PairedStatistic =
    std::function<std::vector<double>(const at::Tensor& of_first, const at::Tensor& of_second)>;
inline constexpr int kJackknifeGroups = 32;
std::vector<Estimate> jackknife(std::int64_t first, std::int64_t second,
                                const PairedStatistic& statistic, int groups = kJackknifeGroups);

struct FeatureMoments {
  at::Tensor mean;        // [F] fp64
  at::Tensor covariance;  // [F, F] fp64
  double count = 0;
};
FeatureMoments feature_moments(const at::Tensor& features);  // [N, F]
// |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^{1/2}); biased upwards by about tr(S)/N in small samples.
// Throws kBadFile for moments of different networks.
double frechet_distance(const FeatureMoments& a, const FeatureMoments& b);

// Mean over `directions` random projections of the squared 1-D Wasserstein distance, square root;
// equal set sizes.
double sliced_wasserstein(const at::Tensor& a, const at::Tensor& b, const at::Tensor& directions);

}  // namespace tiltflow
