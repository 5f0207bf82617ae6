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
  test::expect_error(ErrorKind::kConfig, "at least one", [] { make_grid("uniform", 0); });
}

}  // namespace tiltflow
