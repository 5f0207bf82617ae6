// Is this noise N(0, I)? Moments, spectrum and tests of rows [n, D]; which part of the law is off
// when it is not. A rotation chosen for each row (assignment, alignment) keeps its length and tilts
// its direction: "radially exact, angularly tilted".
#pragma once

#include <ATen/core/Tensor.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tiltflow/tensor/random.h"

namespace tiltflow {

// Patch statistics with the names of Orthogonal-Constrained-One-Step-Alignment; fp32 in, double
// inside; covariance centred, divisor n - 1.
struct PatchStatistics {
  double overall_mean = 0;
  double overall_var = 0;
  double overall_std = 0;  // unbiased, of all numbers
  std::int64_t num_samples = 0;
  std::int64_t dim = 0;
  double mean_abs_mean_per_dim = 0;
  double max_abs_mean_per_dim = 0;
  double mean_abs_var_minus_1 = 0;
  double max_abs_var_minus_1 = 0;
  double cov_identity_fro = 0;
  double cov_trace = 0;
  double norm_mean = 0;
  double norm_std = 0;
  at::Tensor mean_per_dim, var_per_dim, eigenvalues;  // [D] double, eigenvalues ascending
};
PatchStatistics patch_statistics(const at::Tensor& rows);
nlohmann::ordered_json to_json(const PatchStatistics& s);
// The differences that the reference reports between base and transformed noise.
nlohmann::ordered_json compare(const PatchStatistics& base, const PatchStatistics& transformed);

struct NormalityTest {
  std::string name, meaning;
  double statistic = 0;
  double expected = 0;
  double p = 1;  // p: probability of a statistic at least as far from what N(0, I) gives
};
struct NoiseReport {
  PatchStatistics statistics;
  std::vector<NormalityTest>
      tests;  // radial: length; angular: resultant, axes; entries: KS; whole: sliced Wasserstein
  double spectrum_low = 0;
  double spectrum_high = 0;  // Marchenko-Pastur edges (1 -+ sqrt(D/n))^2
  double smallest_angle = 0;
  double smallest_angle_expected = 0;  // degrees between the two closest rows; collisions show here
  std::string verdict;  // "consistent with N(0, I)", "radially exact, angularly tilted", "lengths
                        // are off", ...
};
// `level`: a test fails below level / number of tests. Needs 8 rows or more. The sliced distance is
// compared with that of `replicas` (8 or more) fresh Gaussian sets. Cost: O(n D^2 + n^2 D), pairs
// and the sliced distance of at most 4,096 rows.
NoiseReport noise_report(const at::Tensor& rows, const RandomStreams& streams, double level = 0.01,
                         int replicas = 64);
nlohmann::ordered_json to_json(const NoiseReport& report);
std::string to_text(const NoiseReport& report);

}  // namespace tiltflow
