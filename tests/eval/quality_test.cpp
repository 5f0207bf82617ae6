// Feature statistics of other programs, and of too few pictures.
#include "tiltflow/eval/quality.h"

#include <cmath>

#include "tests/support.h"
#include "tiltflow/io/npz.h"

namespace tiltflow {

TEST(eval_quality, StatisticsFilesOfOtherPrograms) {
  const test::TempDir dir;
  const auto write = [&](const std::vector<std::pair<std::string, at::Tensor>>& arrays) {
    ParameterSet set;
    for (const auto& [name, tensor] : arrays) set.add(name, tensor);
    write_npz(dir / "s.npz", set);
    return dir / "s.npz";
  };
  const at::Tensor mu = at::arange(3, at::kFloat);
  const at::Tensor sigma = at::eye(3, at::kFloat) * 2;
  const FeatureMoments m = read_moments(write({{"mu", mu},
                                               {"sigma", sigma},
                                               {"mu_s", at::zeros({7})},
                                               {"arr_0", at::zeros({2, 2, 2, 3}, at::kByte)}}));
  EXPECT_TRUE(at::equal(m.covariance, sigma.to(at::kDouble)));
  test::expect_error(ErrorKind::kBadFile, "it has arr_0",
                     [&] { read_moments(write({{"arr_0", at::zeros({2, 2, 2, 3}, at::kByte)}})); });
  test::expect_error(ErrorKind::kBadFile, "do not fit",
                     [&] { read_moments(write({{"mu", mu}, {"sigma", at::eye(4)}})); });
  test::expect_error(ErrorKind::kBadFile, "not finite",
                     [&] { read_moments(write({{"mu", mu / 0.f}, {"sigma", sigma}})); });
  at::Tensor skewed = sigma.clone();
  skewed[0][1] = 1;
  test::expect_error(ErrorKind::kBadFile, "not symmetric",
                     [&] { read_moments(write({{"mu", mu}, {"sigma", skewed}})); });
}

TEST(eval_quality, TooFewPictures) {
  test::expect_error(ErrorKind::kBadFile, "photos: statistics need at least 2 pictures",
                     [] { require_two_pictures(1, "photos"); });
  require_two_pictures(2, "photos");
  EXPECT_EQ(singular_note(85, 84, "photos"), "");
  EXPECT_NE(singular_note(84, 84, "photos")
                .find("statistics of 84 pictures in 84 features have a singular covariance"),
            std::string::npos);
}

TEST(eval_quality, OtherFeaturesAreRefusedBeforeSampling) {
  const FeatureNetwork pixels = make_feature_network("pixels");
  const std::vector<std::int64_t> shape{3, 2, 2};
  const auto moments = [](std::int64_t n) {
    return FeatureMoments{at::zeros({n}, at::kDouble), at::eye(n, at::kDouble), 0};
  };
  require_same_features(pixels, moments(12), shape);
  test::expect_error(ErrorKind::kBadFile, "statistics of 2048 features, pixels makes 12",
                     [&] { require_same_features(pixels, moments(2048), shape); });
}

TEST(eval_quality, FrechetDistanceOfGaussians) {
  const at::Tensor a = at::eye(3, at::kDouble);
  const at::Tensor b = at::eye(3, at::kDouble) * 4;
  EXPECT_NEAR(
      frechet_distance({at::zeros({3}, at::kDouble), a, 1}, {at::ones({3}, at::kDouble), b, 1}),
      3 + 3 * 1, 1e-9);  // |dm|^2 + sum (1-2)^2
}

// Two standard normals in d dimensions: mean distance 2 Gamma((d+1)/2) / Gamma(d/2); samples of one
// law have precision and recall near one, samples of half of it lose recall alone.
TEST(eval_quality, DiversityPrecisionRecallAndExtrapolation) {
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

}  // namespace tiltflow
