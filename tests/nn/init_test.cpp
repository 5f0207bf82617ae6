#include "tiltflow/nn/init.h"

#include <cmath>

#include "tests/support.h"

namespace tiltflow {

// Glorot and Bengio (2010): variance 2 / (fan in + fan out).
TEST(nn_init, XavierHasItsVariance) {
  const at::Tensor w = xavier_uniform(RandomStreams(1), "w", {50, 30, 2, 2});
  const double bound = std::sqrt(6.0 / (50 + 30 * 4));
  EXPECT_LE(w.abs().max().item<double>(), bound);
  EXPECT_NEAR(w.var().item<double>(), bound * bound / 3, 0.05 * bound * bound / 3);  // s.e. 1.2 %
}

}  // namespace tiltflow
