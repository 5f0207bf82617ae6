// Which labels a set of samples has when there are too many for its size.
#include "tiltflow/sampler/condition_groups.h"

#include "tests/support.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

ConditionGroups groups(const LabelSource& labels, std::int64_t n, std::int64_t run = 1) {
  GroupingOptions options;
  options.least = 16;
  options.most = 40;
  options.run = run;
  return in_groups(labels, labels, n, options, "check.base_samples");
}

LabelSource distinct_labels() {
  return [](std::int64_t first, std::int64_t n) { return at::arange(first, first + n); };
}

}  // namespace

TEST(sampler_condition_groups, FewLabelsStayAsTheyAre) {
  const LabelSource labels = uniform_labels(RandomStreams(1), 0, 10);
  const ConditionGroups found = groups(labels, 320);
  EXPECT_FALSE(found.chosen);
  EXPECT_EQ(found.conditions, 10);
  EXPECT_EQ(found.whole(317), 317);
  EXPECT_TRUE(at::equal(found.labels(5, 40), labels(5, 40)));
  EXPECT_EQ(law_text(groups(no_labels(), 8)), "p*(x), without a condition");
  EXPECT_EQ(law_text(groups(fixed_label(3), 8)), "p*(x | c) of one condition, 8 samples");
}

TEST(sampler_condition_groups, ManyLabelsAreSharedOutEvenly) {
  const ConditionGroups found = groups(distinct_labels(), 100);
  EXPECT_TRUE(found.chosen);
  EXPECT_EQ(found.conditions, 6);
  EXPECT_EQ(found.whole(100), 96);
  EXPECT_EQ(found.smallest, 16);
  EXPECT_EQ(found.largest, 16);
  EXPECT_EQ(law_text(found), "p*(x | c) of 6 conditions of more, 16 samples of each");
  EXPECT_EQ(groups(distinct_labels(), 5000).conditions, 40) << "at most so many";
  test::expect_error(ErrorKind::kConfig, "check.base_samples = 15",
                     [] { groups(distinct_labels(), 15); });
  // A label that is named twice has two shares.
  const ConditionGroups twice = groups(listed_labels({4, 4, 9, 1, 2, 3, 5, 6, 7, 8}), 64);
  EXPECT_EQ(twice.conditions, 3);
  EXPECT_EQ(twice.largest, 2 * twice.smallest);
}

// The jackknife leaves out every 32nd sample: each such group must hold the same conditions.
TEST(sampler_condition_groups, RunsGiveEveryJackknifeGroupTheSameConditions) {
  GroupingOptions options;
  options.least = 32;
  options.run = 32;
  const ConditionGroups found =
      in_groups(distinct_labels(), distinct_labels(), 320, options, "check.base_samples");
  const at::Tensor labels = found.labels(0, 320).view({-1, 32});
  for (std::int64_t g = 1; g < 32; ++g) {
    EXPECT_TRUE(at::equal(labels.select(1, g), labels.select(1, 0))) << g;
  }
}

}  // namespace tiltflow
