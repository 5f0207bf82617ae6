#include "tiltflow/reward/closed_form.h"
#include "tests/reward/reward_term.h"
#include "tests/support.h"
#include "tiltflow/reward/reward.h"
#include "tiltflow/reward/state_reward.h"

namespace tiltflow {
namespace {

using test::reward_term;

}  // namespace

TEST(reward_closed_form, TargetIsTheBest) {
  RewardTerm term;
  term.name = "brightness";
  const at::Tensor images =
      at::stack({at::full({1, 2, 2}, 0.2F), at::full({1, 2, 2}, 0.5F), at::full({1, 2, 2}, 0.9F)});
  EXPECT_EQ(make_reward(term)->score(images, {}).argmax().item<std::int64_t>(), 2);
  term.target = 0.5;
  EXPECT_EQ(make_reward(term)->score(images, {}).argmax().item<std::int64_t>(), 1);
}

TEST(reward_closed_form, ValuesAndGradients) {
  const at::Tensor images = at::rand({3, 1, 4, 4});
  EXPECT_LT((make_reward(reward_term("ink", 1))->score(images, {}) - images.mean({1, 2, 3}))
                .abs()
                .max()
                .item<double>(),
            1e-6);
  RewardTerm linear = reward_term("linear", 1);
  linear.slope = {2};
  EXPECT_LT((make_reward(linear)->score(images, {}) - 2 * images.sum({1, 2, 3}))
                .abs()
                .max()
                .item<double>(),
            1e-4);
  RewardTerm quadratic = reward_term("quadratic", 3);
  quadratic.center = {0.5};
  quadratic.curvature = 2;
  const auto sum = make_weighted_sum({reward_term("ink", 5), quadratic});
  const at::Tensor expected =
      5 * images.mean({1, 2, 3}) - 3 * (images - 0.5).square().sum({1, 2, 3});
  EXPECT_LT((sum->score(images, {}) - expected).abs().max().item<double>(), 1e-4);
  const StateReward state(sum, pixel_decoder());
  EXPECT_LT(check_reward(state, at::randn({4, 1, 4, 4}), {}, RandomStreams(2)), 0.01);
  // the decoder's factor 1/2 is in the gradient
  const StateReward ink(make_reward(reward_term("ink", 1)), pixel_decoder());
  EXPECT_NEAR(
      ink.score_and_gradient(at::randn({2, 1, 4, 4}), {}).gradient[0][0][0][0].item<double>(),
      0.5 / 16, 1e-7);
}

}  // namespace tiltflow
