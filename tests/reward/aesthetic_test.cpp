#include "tiltflow/reward/aesthetic.h"
#include "tests/models/clip_samples.h"
#include "tests/support.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/tensor_file.h"
#include "tiltflow/reward/state_reward.h"

namespace tiltflow {
namespace {

using test::clip_folder;
using test::clip_golden;

}  // namespace

TEST(reward_aesthetic, HeadEqualsTheReference) {
  const AestheticHead head(clip_folder("aesthetic_random_head.pth"));
  const ParameterSet g = clip_golden("aesthetic_random_head_io");
  const at::Tensor embedding = g.at("embedding").clone().set_requires_grad(true);
  const at::AutoGradMode grad(true);
  const at::Tensor score = head.score(embedding);
  EXPECT_LT(test::relative_error(score, g.at("score")), 5e-5);
  EXPECT_LT(test::relative_error(torch::autograd::grad({score.sum()}, {embedding})[0],
                                 g.at("grad_embedding")),
            1e-4);
}

TEST(reward_aesthetic, TheFoldedHeadIsTheFiveLayers) {
  const AestheticHead head(clip_folder("aesthetic_random_head.pth"));
  const ParameterSet t = read_tensors(clip_folder("aesthetic_random_head.pth")).tensors;
  const at::Tensor direction =
      RandomStreams(2).normal(Purpose::kProbe, 0, 0, 0, 50, {head.width()});
  const at::Tensor unit = direction / direction.norm(2, {1}, true);
  at::Tensor h = unit;
  for (const int i : {0, 2, 4, 6, 7}) {
    h = at::linear(h, t.at(cat("layers.", i, ".weight")), t.at(cat("layers.", i, ".bias")));
  }
  EXPECT_LT((head.score(3 * unit) - h.squeeze(1)).abs().max().item<double>(), 1e-4);
  EXPECT_EQ(head.weight().numel(), head.width());
  // The published head, where the checkout has it.
  const std::filesystem::path published =
      test::source_dir() / "../shared/data/aesthetic/sac+logos+ava1-l14-linearMSE.pth";
  if (!std::filesystem::exists(published)) return;
  const AestheticHead real(published);
  EXPECT_NEAR(real.bias(), 5.236646, 1e-5);
  EXPECT_NEAR(real.weight().norm().item<double>(), 17.995625, 1e-4);
  EXPECT_NEAR(real.weight()[0][0].item<double>(), -0.691593, 1e-5);
  EXPECT_NEAR(real.score(at::ones({1, 768})).item<double>(), 4.883285, 1e-4);
}

// The whole reward: a gradient reaches the pixels (the Python module's did not), and head and tower
// must fit each other.
TEST(reward_aesthetic, GradientReachesTheState) {
  const test::TempDir dir;
  ParameterSet head;
  std::uint32_t key = 0;
  const std::int64_t sizes[6] = {16, 12, 10, 8, 4, 1};
  int j = 0;
  for (const int i : {0, 2, 4, 6, 7}) {
    head.add(cat("layers.", i, ".weight"),
             RandomStreams(3).normal(Purpose::kInit, 1, ++key, 0, sizes[j + 1], {sizes[j]}));
    head.add(cat("layers.", i, ".bias"),
             RandomStreams(3).normal(Purpose::kInit, 1, ++key, 0, 1, {sizes[j + 1]})[0]);
    ++j;
  }
  write_safetensors(dir / "head.safetensors", head);
  RewardTerm term;
  term.name = "aesthetic";
  term.clip = clip_folder("vision_gelu").string();
  term.head = (dir / "head.safetensors").string();
  const StateReward reward(make_weighted_sum({term}), pixel_decoder());
  const at::Tensor x = RandomStreams(4).normal(Purpose::kPrior, 0, 0, 0, 3, {3, 20, 30});
  EXPECT_LT(check_reward(reward, x, {}, RandomStreams(5)), 0.05);
  EXPECT_GT(reward.score_and_gradient(x, {}).gradient.abs().max().item<double>(), 1e-6);
  term.head = clip_folder("aesthetic_random_head.pth").string();
  test::expect_error(ErrorKind::kConfig, "the aesthetic head takes 32 features, this CLIP gives 16",
                     [&] { make_reward(term); });
  term.head.clear();
  test::expect_error(ErrorKind::kConfig, "needs clip and head", [&] { make_reward(term); });
}

}  // namespace tiltflow
