#include <cmath>

#include "tests/support.h"
#include "tiltflow/flow/time_grid.h"
#include "tiltflow/verify/gaussian_chain.h"
#include "tiltflow/verify/problems.h"
#include "tiltflow/verify/suite.h"

namespace tiltflow {

TEST(verify_suite, OptimumOfAGaussianChain) {
  const TransitionTable table = make_table("euler", *make_path("linear"), uniform_grid(40));
  const ChainOptimum linear = gaussian_chain_optimum(line_gaussian(false), table);
  const ChainOptimum quadratic = gaussian_chain_optimum(line_gaussian(true), table);
  EXPECT_NEAR(linear.mean.item<double>(), 1.249, 6e-4);
  EXPECT_NEAR(linear.covariance.item<double>(), 0.4905, 6e-5);
  EXPECT_NEAR(linear.cost, 0.552, 6e-4);
  EXPECT_NEAR(quadratic.mean.item<double>(), 1.143, 6e-4);
  EXPECT_NEAR(quadratic.covariance.item<double>(), 0.289, 6e-4);
  EXPECT_NEAR(quadratic.cost, 0.467, 6e-4);
  // In 16 dimensions the bias falls with the step.
  const ExactProblem wide = wide_gaussian(16, true);
  const auto gap = [&](int K) {
    return gaussian_chain_optimum(wide, make_table("euler", *wide.path, uniform_grid(K))).gap(wide);
  };
  EXPECT_GT(gap(40), 2 * gap(160));
  EXPECT_GT(gap(160), 0);
  EXPECT_THROW(gaussian_chain_optimum(near_modes(), table), Error);
  EXPECT_THROW(gaussian_chain_optimum(wide, make_table("ddim", *wide.path, uniform_grid(4), 0.0)),
               Error);
}

TEST(verify_suite, RowsJudgeThemselves) {
  VerifyRow row{"p", "q", 1, {1.05, 0}, 0.1, false, ""};
  EXPECT_TRUE(row.ok());
  row.negative_control = true;
  EXPECT_FALSE(row.ok());
  row.obtained.value = std::nan("");
  EXPECT_TRUE(row.ok());  // a control that blows up fails, as it must
  row.negative_control = false;
  EXPECT_FALSE(row.ok());
}

}  // namespace tiltflow
