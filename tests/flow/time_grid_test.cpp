#include "tiltflow/flow/time_grid.h"
#include "tests/support.h"

namespace tiltflow {

TEST(flow_time_grid, EndsAndOrder) {
  for (const char* name : {"uniform", "cosine", "shifted"}) {
    const auto grid = make_grid(name, 7, 3);
    EXPECT_EQ(grid.size(), 8u);
    EXPECT_EQ(grid.front(), 0);
    EXPECT_EQ(grid.back(), 1);
    EXPECT_TRUE(std::is_sorted(grid.begin(), grid.end()));
  }
  EXPECT_NEAR(make_grid("shifted", 2, 3)[1], 0.25, 1e-12)
      << "a shift above 1 spends steps near the noise";
  test::expect_error(ErrorKind::kConfig, "at least one", [] { make_grid("uniform", 0); });
}

}  // namespace tiltflow
