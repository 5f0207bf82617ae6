#include "tiltflow/noise/row_optimizer.h"

#include <cmath>

#include "tests/support.h"

namespace tiltflow {

// Kingma and Ba (2015) with their constants, two steps by hand.
TEST(noise_row_optimizer, AdamTakesItsPublishedSteps) {
  const auto adam = make_row_adam(0.1, {});
  std::vector<double> x{2};
  ASSERT_TRUE(adam->step(1, {1}, x, 0));
  EXPECT_NEAR(x[0], 2 - 0.1, 1e-8);
  const double first = (0.9 * 0.1 * 1 + 0.1 * 3) / (1 - 0.9 * 0.9);
  const double second = (0.999 * 0.001 * 1 + 0.001 * 9) / (1 - 0.999 * 0.999);
  ASSERT_TRUE(adam->step(1, {3}, x, 0));
  EXPECT_NEAR(x[0], 1.9 - 0.1 * first / std::sqrt(second), 1e-8);
}

}  // namespace tiltflow
