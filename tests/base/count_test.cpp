#include <stdexcept>

#include "tests/support.h"
#include "tiltflow/base/count.h"

namespace tiltflow {

TEST(base_count, NounsAndNumbers) {
  EXPECT_EQ(counted(1, "step"), "1 step");
  EXPECT_EQ(counted(0, "step"), "0 steps");
  EXPECT_EQ(counted(2, "trajectory", "trajectories"), "2 trajectories");
  EXPECT_EQ(shortest(0.1), "0.1");
  EXPECT_EQ(shortest(0.1 + 0.2), "0.30000000000000004");
  EXPECT_EQ(shortest(3), "3");
}

}  // namespace tiltflow
