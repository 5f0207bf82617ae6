#include "tiltflow/models/autoencoder/autoencoder.h"
#include "tests/support.h"
#include "tiltflow/eval/parity.h"
#include "tiltflow/reward/state_reward.h"

namespace tiltflow {
namespace {

std::filesystem::path folder(const std::string& name) {
  return test::source_dir() / "tests/golden/diffusers" / name;
}

ParameterSet io(const std::string& name) {
  return read_safetensors(folder(name + "_io.safetensors")).tensors;
}

at::Tensor latent(std::int64_t height, std::int64_t width) {
  return RandomStreams(3).normal(Purpose::kProbe, 0, 0, 0, 2, {16, height, width});
}

}  // namespace

TEST(models_autoencoder, OutputsAndGradientsEqualThoseOfDiffusers) {
  for (const char* name : {"vae16", "taesd"}) {
    for (const bool checkpointing : {false, true}) {
      const auto rows = compare_with_reference(
          *load_autoencoder(folder(name), {},
                            {MatmulPrecision::kFull, checkpointing, checkpointing ? 1 : 0}),
          io(name));
      EXPECT_GE(rows.size(), 3u);
      for (const ParityRow& row : rows) {
        EXPECT_TRUE(row.ok()) << name << " " << row.tensor << " " << row.error;
      }
    }
  }
  const auto vae = load_autoencoder(folder("vae16"));
  EXPECT_EQ(vae->scale, 1.5305);
  EXPECT_EQ(vae->shift, 0.0609);
  EXPECT_EQ(vae->downscale(), 4);
  EXPECT_EQ(load_autoencoder(folder("taesd"))->downscale(), 8);
  EXPECT_LT(test::relative_error(vae->from_scaled(vae->to_scaled(latent(2, 2))), latent(2, 2)),
            1e-6);
}

// Published Stable Diffusion files use older names, some with 1x1 convolutions in the attention.
TEST(models_autoencoder, OlderNamesAreTheSameNetwork) {
  const test::TempDir dir;
  const ParameterSet now =
      read_safetensors(folder("vae16/diffusion_pytorch_model.safetensors")).tensors;
  ParameterSet before;
  for (const auto& [name, tensor] : now) {
    std::string old = name;
    for (const auto& [a, b] : {std::pair{"to_q", "query"},
                               {"to_k", "key"},
                               {"to_v", "value"},
                               {"to_out.0", "proj_attn"}}) {
      if (const std::size_t at = old.find(a); at != std::string::npos) {
        old.replace(at, std::string(a).size(), b);
      }
    }
    before.add(old, old != name && tensor.dim() == 2 ? tensor.unsqueeze(2).unsqueeze(3) : tensor);
  }
  write_safetensors(dir / "old.safetensors", before);
  const auto old = load_autoencoder(dir / "old.safetensors", {{"norm_num_groups", "4"}});
  EXPECT_LT(test::relative_error(old->decode(latent(3, 5)),
                                 load_autoencoder(folder("vae16"))->decode(latent(3, 5))),
            1e-6);
  EXPECT_EQ(old->scale, 0.18215) << "no configuration: the classical scale";
  test::expect_error(ErrorKind::kBadFile, "do not divide into 32 groups",
                     [&] { load_autoencoder(dir / "old.safetensors"); });
  ParameterSet broken;
  for (const auto& [name, tensor] : now) {
    if (name != "decoder.conv_out.bias") broken.add(name, tensor);
  }
  write_safetensors(dir / "broken.safetensors", broken);
  test::expect_error(ErrorKind::kBadFile, "decoder.conv_out.bias", [&] {
    load_autoencoder(dir / "broken.safetensors", {{"norm_num_groups", "4"}});
  });
  test::expect_error(ErrorKind::kConfig, "did you mean 'scaling_factor'",
                     [&] { load_autoencoder(folder("vae16"), {{"scaling_facto", "1"}}); });
  test::expect_error(ErrorKind::kBadFile, "not an autoencoder",
                     [] { load_autoencoder(test::golden("sit_a_ema.safetensors")); });
}

TEST(models_autoencoder, TilesSlicesAndPrecision) {
  const auto plain = load_autoencoder(folder("vae16"));
  const at::NoGradGuard no_grad;
  const at::Tensor z = latent(12, 9);
  const at::Tensor image = plain->decode(z);
  EXPECT_LT(
      test::relative_error(
          load_autoencoder(folder("vae16"), {}, {MatmulPrecision::kFull, false, 1})->decode(z),
          image),
      1e-5)
      << "slices are exact";
  // Tiles see less of the picture: close, not equal; large enough tiles are never used.
  const at::Tensor tiled =
      load_autoencoder(folder("vae16"), {}, {MatmulPrecision::kFull, false, 0, 8})->decode(z);
  EXPECT_EQ(tiled.sizes(), image.sizes());
  EXPECT_GT(test::relative_error(tiled, image), 1e-6);
  EXPECT_LT((tiled - image).abs().mean().item<double>() / image.abs().mean().item<double>(), 0.5);
  EXPECT_TRUE(at::equal(
      load_autoencoder(folder("vae16"), {}, {MatmulPrecision::kFull, false, 0, 12})->decode(z),
      image));
  const at::Tensor half =
      load_autoencoder(folder("vae16"), {}, {MatmulPrecision::kBf16})->decode(z);
  EXPECT_LT(test::relative_error(half, image), 0.05);
  EXPECT_FALSE(at::equal(half, image));
}

TEST(models_autoencoder, ALayerThatOverflowsIsNamed) {
  const test::TempDir dir;
  ParameterSet weights;
  for (const auto& [name, tensor] :
       read_safetensors(folder("vae16/diffusion_pytorch_model.safetensors")).tensors) {
    weights.add(name, name == "decoder.up_blocks.1.resnets.0.conv2.bias" ? tensor + 3e38F : tensor);
  }
  write_safetensors(dir / "hot.safetensors", weights);
  const auto hot = load_autoencoder(dir / "hot.safetensors", {{"norm_num_groups", "4"}});
  test::expect_error(ErrorKind::kNonFinite, "layer decoder.up_blocks.1.resnets.",
                     [&] { hot->decode(latent(2, 2)); });
}

// A reward of images as a reward of scaled latents: its gradient by finite differences in double.
TEST(models_autoencoder, DecodedRewardHasTheRightGradient) {
  RewardTerm term;
  const StateReward reward(
      make_weighted_sum({term}),
      decoder_for({16, 2, 3}, load_autoencoder(folder("vae16"), {}, {}, at::kDouble)));
  const at::Tensor z = latent(2, 3).to(at::kDouble);
  const at::Tensor direction =
      RandomStreams(4).normal(Purpose::kProbe, 0, 0, 0, 2, {16, 2, 3}, at::kDouble);
  const double slope = (reward.score_and_gradient(z, {}).gradient * direction).sum().item<double>();
  const double h = 1e-6;
  const double numeric = (reward.score(z + direction * h, {}) - reward.score(z - direction * h, {}))
                             .sum()
                             .item<double>() /
                         (2 * h);
  EXPECT_NEAR(numeric / slope, 1, 1e-6);
  const auto plain = load_autoencoder(folder("vae16"), {}, {}, at::kDouble);
  ASSERT_NE(plain->scale, 1) << "or scaled latents would be plain ones";
  const at::Tensor ink =
      (plain->decode(z / plain->scale + plain->shift) + 1).flatten(1).mean(1) / 2;
  EXPECT_LT((reward.score(z, {}) - ink).abs().max().item<double>(), 1e-9);
  test::expect_error(ErrorKind::kConfig, "16-channel latents",
                     [] { decoder_for({4, 8, 8}, load_autoencoder(folder("vae16"))); });
}

}  // namespace tiltflow
