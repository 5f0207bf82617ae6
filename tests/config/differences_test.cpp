#include "tiltflow/config/differences.h"
#include "tests/support.h"

namespace tiltflow {
namespace {

using test::expect_error;

}  // namespace

TEST(config_differences, CompareValuesByKey) {
  const auto changes = config_differences("a = 0.10000000000000001\n[b]\nc = 1\n[[r]]\nx = 'p'\n",
                                          "a = 0.1\n[b]\nc = 2\n[[r]]\nx = 'p'\n[[r]]\nx = 'q'\n");
  ASSERT_EQ(changes.size(), 2u);
  EXPECT_EQ(changes[0].key + " " + changes[0].before + " " + changes[0].now, "b.c 1 2");
  EXPECT_EQ(changes[1].key, "r[1].x");
  EXPECT_EQ(changes[1].before, "nothing");
  EXPECT_EQ(config_differences("a = 2e-4", "a = 0.1")[0].before, "2e-04") << "as users wrote it";
  expect_error(ErrorKind::kBadFile, "line 1", [] { config_differences("a b", "a = 1"); });
}

// Runs that were stored before a key was renamed can be continued.
TEST(config_differences, FormerNamesAreNoDifference) {
  EXPECT_TRUE(
      config_differences("item = 3\n[sft]\nitem = 2\n", "micro_batch = 3\n[sft]\nmicro_batch = 2\n")
          .empty());
  const std::vector<KeyChange> changed = config_differences("item = 3\n", "micro_batch = 4\n");
  ASSERT_EQ(changed.size(), 1u);
  EXPECT_EQ(changed[0].key, "micro_batch");
}

}  // namespace tiltflow
