// Errors of importance weights against numbers worked out by hand.
#include <cmath>

#include "tests/support.h"
#include "tiltflow/reward/importance.h"

namespace tiltflow {
namespace {

at::Tensor logs(const std::vector<double>& weights) {
  return at::tensor(weights, at::kDouble).log();
}

}  // namespace

// Two laws with weights 1, 1, 3, 3 (mean 2, variance 4/3) and 5, 5, 5, 5, 5, 5, 5, 5: shares 1/3
// and 2/3.
TEST(reward_importance, ErrorsOfSeveralLaws) {
  const at::Tensor rewards = logs({1, 5, 5, 1, 5, 5, 3, 5, 5, 3, 5, 5});
  const at::Tensor labels =
      at::tensor(std::vector<std::int64_t>{0, 1, 1, 0, 1, 1, 0, 1, 1, 0, 1, 1}, at::kLong);
  const ImportanceWeights w = importance_weights(rewards, labels);
  EXPECT_NEAR(w.log_z, std::log(2.0) / 3 + 2 * std::log(5.0) / 3, 1e-12);
  EXPECT_NEAR(w.log_z_se, std::sqrt((4.0 / 3) / (4 * 4)) / 3, 1e-12)
      << "(1/3)^2 times the variance of the first law's log Z; the second has none";
  EXPECT_NEAR(w.ess, 144.0 / (2 * 0.25 + 2 * 2.25 + 8), 1e-9) << "relative weights 1/2, 3/2 and 1";
}

// w = log weights; the influence of a sample on log E exp(w) - E w is exp(w - log Z) - w.
TEST(reward_importance, ErrorOfThePathGap) {
  const at::Tensor w = logs({1, 1, 3, 3});
  const PathGap gap = path_gap(w, at::zeros({4}), {});
  EXPECT_NEAR(gap.gap, std::log(2.0) - 0.5 * std::log(3.0), 1e-12);
  const double low = 0.5;
  const double high = 1.5 - std::log(3.0);  // influences, twice each
  EXPECT_NEAR(gap.gap_se, std::abs(high - low) / std::sqrt(3.0) / 2, 1e-12);
}

}  // namespace tiltflow
