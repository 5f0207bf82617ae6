// Feature statistics of other programs, and of too few pictures.
#include "tiltflow/eval/quality.h"
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

}  // namespace tiltflow
