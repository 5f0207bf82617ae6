#include "tiltflow/reward/aesthetic.h"

#include "tests/support.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/eval/parity.h"
#include "tiltflow/io/tensor_file.h"
#include "tiltflow/models/clip/vision.h"
#include "tiltflow/reward/state_reward.h"

namespace tiltflow {
namespace {
std::filesystem::path folder(const std::string& name) {
  return test::source_dir() / "tests/golden/clip" / name;
}
ParameterSet golden(const std::string& name) {
  return read_safetensors(folder(name + ".safetensors")).tensors;
}
}  // namespace

TEST(models_clip, EmbeddingsAndGradientsEqualTheReference) {
  for (const ParityRow& row :
       compare_with_reference(*load_clip_vision(folder("vision_gelu")), golden("vision_gelu_io"))) {
    EXPECT_TRUE(row.ok()) << row.tensor << " " << row.error;
  }
  // open_clip's names, quick gelu, heads of eight channels
  const auto rows = compare_with_reference(
      *load_clip_vision(folder("openclip_quickgelu.pt"), {{"num_heads", "3"}}),
      golden("openclip_quickgelu_io"));
  EXPECT_EQ(rows.size(), 2u);
  for (const ParityRow& row : rows) EXPECT_TRUE(row.ok()) << row.tensor << " " << row.error;
  // Another activation or number of heads is noticed.
  for (const std::map<std::string, std::string>& wrong :
       {std::map<std::string, std::string>{{"num_heads", "2"}},
        {{"num_heads", "3"}, {"activation", "gelu"}}}) {
    EXPECT_FALSE(compare_with_reference(*load_clip_vision(folder("openclip_quickgelu.pt"), wrong),
                                        golden("openclip_quickgelu_io"))[0]
                     .ok());
  }
  test::expect_error(ErrorKind::kBadFile, "not a CLIP image tower",
                     [] { load_clip_vision(test::golden("sit_a_ema.safetensors")); });
  test::expect_error(ErrorKind::kConfig, "do not divide into 7 heads", [] {
    load_clip_vision(folder("openclip_quickgelu.pt"), {{"num_heads", "7"}});
  });
}

TEST(models_clip, PreprocessingEqualsTorchvision) {
  const ParameterSet g = golden("preprocess");
  for (const char* name : {"case4", "case5", "case6", "case7"}) {
    const at::Tensor expected = g.at(cat(name, ".torch_aa.pixel_values"));
    const at::Tensor image =
        (g.at(cat(name, ".image_uint8")).permute({2, 0, 1}).unsqueeze(0).to(at::kFloat) / 255)
            .set_requires_grad(true);
    const at::AutoGradMode grad(true);
    const at::Tensor found = clip_preprocess(image, expected.size(1));
    EXPECT_LT((found[0] - expected).abs().max().item<double>(), 1e-5) << name;
    const at::Tensor gradient = torch::autograd::grad(
        {(found[0] * g.at(cat(name, ".torch_aa.cotangent"))).sum()}, {image})[0];
    EXPECT_LT(test::relative_error(gradient[0], g.at(cat(name, ".torch_aa.vjp_image"))), 1e-5)
        << name;
  }
  const at::Tensor grey = RandomStreams(1).uniform(Purpose::kProbe, 0, 0, 2, {1, 32, 32});
  EXPECT_TRUE(at::equal(clip_preprocess(grey, 28), clip_preprocess(grey.repeat({1, 3, 1, 1}), 28)));
}

TEST(reward_aesthetic, HeadEqualsTheReference) {
  const AestheticHead head(folder("aesthetic_random_head.pth"));
  const ParameterSet g = golden("aesthetic_random_head_io");
  const at::Tensor embedding = g.at("embedding").clone().set_requires_grad(true);
  const at::AutoGradMode grad(true);
  const at::Tensor score = head.score(embedding);
  EXPECT_LT(test::relative_error(score, g.at("score")), 5e-5);
  EXPECT_LT(test::relative_error(torch::autograd::grad({score.sum()}, {embedding})[0],
                                 g.at("grad_embedding")),
            1e-4);
}

TEST(reward_aesthetic, TheFoldedHeadIsTheFiveLayers) {
  const AestheticHead head(folder("aesthetic_random_head.pth"));
  const ParameterSet t = read_tensors(folder("aesthetic_random_head.pth")).tensors;
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
  term.clip = folder("vision_gelu").string();
  term.head = (dir / "head.safetensors").string();
  const StateReward reward(make_weighted_sum({term}), pixel_decoder());
  const at::Tensor x = RandomStreams(4).normal(Purpose::kPrior, 0, 0, 0, 3, {3, 20, 30});
  EXPECT_LT(check_reward(reward, x, {}, RandomStreams(5)), 0.05);
  EXPECT_GT(reward.score_and_gradient(x, {}).gradient.abs().max().item<double>(), 1e-6);
  term.head = folder("aesthetic_random_head.pth").string();
  test::expect_error(ErrorKind::kConfig, "the aesthetic head takes 32 features, this CLIP gives 16",
                     [&] { make_reward(term); });
  term.head.clear();
  test::expect_error(ErrorKind::kConfig, "needs clip and head", [&] { make_reward(term); });
}

TEST(reward_brightness, TargetIsTheBest) {
  RewardTerm term;
  term.name = "brightness";
  const at::Tensor images =
      at::stack({at::full({1, 2, 2}, 0.2F), at::full({1, 2, 2}, 0.5F), at::full({1, 2, 2}, 0.9F)});
  EXPECT_EQ(make_reward(term)->score(images, {}).argmax().item<std::int64_t>(), 2);
  term.target = 0.5;
  EXPECT_EQ(make_reward(term)->score(images, {}).argmax().item<std::int64_t>(), 1);
}

}  // namespace tiltflow
