#include <limits>

#include "tests/support.h"
#include "tiltflow/base/file.h"
#include "tiltflow/io/json_lines.h"
#include "tiltflow/io/tensorboard.h"

namespace tiltflow {

TEST(io_json_lines, HalfALineIsForgotten) {
  const test::TempDir dir;
  {
    JsonLines lines(dir / "m.jsonl");
    lines.write({{"step", 1}, {"x", json_number(std::nan(""))}});
  }
  LineAppender(dir / "m.jsonl").write("{\"step\": 2");
  const auto lines = read_json_lines(dir / "m.jsonl");
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_TRUE(std::isnan(number_from_json(lines[0]["x"])));
}

TEST(io_json_lines, InfinitiesKeepTheirSign) {
  const double infinity = std::numeric_limits<double>::infinity();
  EXPECT_EQ(number_from_json(json_number(infinity)), infinity);
  EXPECT_EQ(number_from_json(json_number(-infinity)), -infinity);
}

}  // namespace tiltflow
