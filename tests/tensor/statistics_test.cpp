#include <cmath>

#include "tests/support.h"
#include "tiltflow/eval/quality.h"
#include "tiltflow/tensor/random.h"
#include "tiltflow/tensor/statistics.h"

namespace tiltflow {

TEST(tensor_statistics, JackknifeOfAPlainMeanIsTheUsualStandardError) {
  const at::Tensor x = RandomStreams(1).normal(Purpose::kProbe, 0, 0, 0, 6400, {}, at::kDouble);
  const auto e = jackknife(6400, 0, [&](const at::Tensor& index, const at::Tensor&) {
    return std::vector<double>{x.index_select(0, index).mean().item<double>()};
  });
  EXPECT_NEAR(e[0].value, mean_estimate(x).value, 1e-12);
  EXPECT_NEAR(e[0].se / mean_estimate(x).se, 1, 0.4);  // 32 groups: 13 % per s.e., three of them
}

// Samples of one number belong together: what both sets share cancels from the error of their
// difference, whatever their sizes.
TEST(tensor_statistics, PairedJackknife) {
  const RandomStreams streams(3);
  const at::Tensor x = streams.normal(Purpose::kProbe, 0, 0, 0, 1600, {1}, at::kDouble).flatten();
  const at::Tensor y =
      x + 0.1 * streams.normal(Purpose::kProbe, 1, 0, 0, 1600, {1}, at::kDouble).flatten();
  const auto difference = [&](const at::Tensor& other, std::int64_t n) {
    return jackknife(1600, n, [&](const at::Tensor& i, const at::Tensor& j) {
      return std::vector<double>{x.index_select(0, i).mean().item<double>() -
                                 other.index_select(0, j).mean().item<double>()};
    })[0];
  };
  const at::Tensor apart =
      streams.normal(Purpose::kProbe, 2, 0, 0, 1600, {1}, at::kDouble).flatten();
  EXPECT_NEAR(difference(y, 1600).se, 0.1 / 40, 0.03 / 40);
  EXPECT_NEAR(difference(apart, 1600).se, std::sqrt(2.0) / 40, 0.4 / 40);
  EXPECT_NEAR(difference(y, 800).se, std::sqrt(1.0 / 1600 + 1.01 / 800 - 2.0 / 1600), 0.25 / 40)
      << "half of the pairs";
}

TEST(tensor_statistics, FrechetDistanceOfGaussians) {
  const at::Tensor a = at::eye(3, at::kDouble);
  const at::Tensor b = at::eye(3, at::kDouble) * 4;
  EXPECT_NEAR(
      frechet_distance({at::zeros({3}, at::kDouble), a, 1}, {at::ones({3}, at::kDouble), b, 1}),
      3 + 3 * 1, 1e-9);  // |dm|^2 + sum (1-2)^2
}

// Two standard normals in d dimensions: mean distance 2 Gamma((d+1)/2) / Gamma(d/2); samples of one
// law have precision and recall near one, samples of half of it lose recall alone.
TEST(tensor_statistics, DiversityPrecisionRecallAndExtrapolation) {
  const RandomStreams streams(6);
  const at::Tensor x = streams.normal(Purpose::kProbe, 0, 0, 0, 800, {3}, at::kDouble);
  const at::Tensor y = streams.normal(Purpose::kProbe, 1, 0, 0, 800, {3}, at::kDouble);
  const Estimate spread = diversity(x);
  EXPECT_NEAR(spread.value, 2 * std::tgamma(2) / std::tgamma(1.5), 4 * spread.se);
  EXPECT_LT(spread.se, 0.06);
  const PrecisionRecall same = precision_recall(x, y);
  EXPECT_GT(same.precision.value, 0.85);
  EXPECT_GT(same.recall.value, 0.85);
  const at::Tensor half = x.index_select(0, (x.select(1, 0) > 0).nonzero().flatten());
  const PrecisionRecall fewer = precision_recall(half, y);
  EXPECT_GT(fewer.precision.value, 0.85);
  EXPECT_NEAR(fewer.recall.value, 0.5, 0.12);
  // The truth is zero; the plain distance is biased upwards, the extrapolated one is not.
  const FeatureMoments truth{at::zeros({3}, at::kDouble), at::eye(3, at::kDouble), 1e9};
  const at::Tensor few = streams.normal(Purpose::kProbe, 2, 0, 0, 400, {3}, at::kDouble);
  const Estimate extrapolated = frechet_extrapolated(few, truth, streams);
  EXPECT_LT(std::abs(extrapolated.value), frechet_distance(feature_moments(few), truth));
  EXPECT_THROW(frechet_extrapolated(few.narrow(0, 0, 50), truth, streams), Error);
}

TEST(tensor_statistics, SeedsThatAgreeByChanceKeepTheErrorOfTheirValues) {
  const at::Tensor x = at::tensor({-1.0, 1.0, -1.0, 1.0}, at::kDouble);
  const Estimate agreeing = estimate_over_seeds({x, x});
  EXPECT_EQ(agreeing.value, 0);
  EXPECT_NEAR(agreeing.se, 1 / std::sqrt(7), 1e-12);  // deviation sqrt(8 / 7) of eight values
  const Estimate apart = estimate_over_seeds({x - 10, x + 10});
  EXPECT_NEAR(apart.se, 10, 1e-12);
  EXPECT_EQ(estimate_over_seeds({x}).se, mean_estimate(x).se);
}

}  // namespace tiltflow
