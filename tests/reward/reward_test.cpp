#include "tiltflow/reward/reward.h"
#include "tests/reward/reward_term.h"
#include "tests/support.h"

namespace tiltflow {
namespace {

using test::reward_term;

}  // namespace

TEST(reward_reward, MistakesAreNamed) {
  test::expect_error(ErrorKind::kConfig, "did you mean 'quadratic'",
                     [] { make_reward(reward_term("quadratc", 1)); });
  test::expect_error(ErrorKind::kConfig, "center is missing",
                     [] { make_reward(reward_term("quadratic", 1)); });
  test::expect_error(ErrorKind::kConfig, "slope is missing",
                     [] { make_reward(reward_term("linear", 1)); });
  test::expect_error(ErrorKind::kConfig, "no reward", [] { make_weighted_sum({}); });
  RewardTerm linear = reward_term("linear", 1);
  linear.slope = {1, 2, 3};
  test::expect_error(ErrorKind::kConfig, "has 3 numbers",
                     [&] { make_reward(linear)->score(at::zeros({1, 4}), {}); });
}

}  // namespace tiltflow
