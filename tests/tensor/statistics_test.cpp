#include <cmath>

#include "tests/support.h"
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

}  // namespace tiltflow
