// Errors of importance weights against numbers worked out by hand.
#include <cmath>

#include "tests/support.h"
#include "tiltflow/reward/importance.h"
#include "tiltflow/tensor/statistics.h"
#include "tiltflow/verify/problems.h"

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

// A condition that was drawn once has a weight, and nothing is known of its normaliser.
TEST(reward_importance, SingleSamplesHaveNoError) {
  const at::Tensor rewards = logs({1, 1, 3, 3, 7});
  const at::Tensor labels = at::tensor(std::vector<std::int64_t>{0, 0, 0, 0, 1}, at::kLong);
  const ImportanceWeights w = importance_weights(rewards, labels);
  ASSERT_EQ(w.conditions.size(), 2u);
  EXPECT_EQ(w.conditions[0].samples, 4);
  EXPECT_NEAR(w.conditions[0].log_z, std::log(2.0), 1e-12);
  EXPECT_NEAR(w.conditions[0].log_z_se, std::sqrt((4.0 / 3) / (4 * 4)), 1e-12);
  EXPECT_EQ(w.conditions[1].label, 1);
  EXPECT_TRUE(std::isinf(w.conditions[1].log_z_se) && std::isinf(w.log_z_se));
  EXPECT_TRUE(std::isinf(path_gap(rewards, at::zeros({5}), labels).gap_se));
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

TEST(reward_importance, ImportanceWeightsRecoverATilt) {
  const ExactProblem p = near_modes();
  const at::Tensor x = sample(p.base->mixture(), RandomStreams(2), 0, 20000);
  const at::Tensor r = evaluate(p.form, x);
  const ImportanceWeights weights = importance_weights(r, {});
  EXPECT_NEAR(weights.log_z, p.target.log_z, 4 * weights.log_z_se);
  EXPECT_LT(weights.log_z_se, 0.02);
  const auto e = jackknife(r.size(0), 0, [&](const at::Tensor& index, const at::Tensor&) {
    return std::vector<double>{at::dot(r.index_select(0, index).to(at::kDouble).softmax(0),
                                       x.index_select(0, index).flatten())
                                   .item<double>()};
  });
  EXPECT_NEAR(e[0].value, mean(p.target.law)[0].item<double>(), 4 * e[0].se);
  EXPECT_LT(weights.ess, 20000);
}

// Two labels whose rewards differ by a constant: the constant must not move mass between them.
TEST(reward_importance, EveryLabelHasItsOwnNormaliser) {
  const at::Tensor labels = at::arange(1000).remainder(2);
  const at::Tensor r =
      RandomStreams(3).normal(Purpose::kProbe, 0, 0, 0, 1000, {}, at::kDouble) + labels * 7;
  const ImportanceWeights weights = importance_weights(r, labels);
  const at::Tensor w = weights.log_weights.softmax(0);
  EXPECT_NEAR((w * labels).sum().item<double>(), 0.5, 1e-9);
  EXPECT_NEAR(weights.log_z, 0.5 + 3.5, 0.2);
}

}  // namespace tiltflow
