#include "tiltflow/models/sit/sit.h"
#include "tests/models/tiny_sit.h"
#include "tests/support.h"
#include "tiltflow/eval/parity.h"
#include "tiltflow/models/model_file.h"

namespace tiltflow {
namespace {

using test::tiny_parity_config;

}  // namespace

TEST(models_sit, OutputsAndGradientsEqualTheOfficialOnes) {
  for (const auto& [name, heads] : {std::pair{"sit_a", "4"}, {"sit_b", "3"}}) {
    const std::map<std::string, std::string> args{{"num_heads", heads}};
    for (const auto attention : {AttentionBackend::kMath, AttentionBackend::kFused}) {
      const auto model = load_velocity_model(test::golden(std::string(name) + "_ema.safetensors"),
                                             args, {MatmulPrecision::kFull, attention, false});
      const auto wide = load_velocity_model(test::golden(std::string(name) + "_ema.safetensors"),
                                            args, {}, at::kDouble);
      const auto rows = compare_with_reference(
          *model.model, wide.model.get(),
          read_safetensors(test::golden(std::string(name) + "_forward.safetensors")).tensors);
      EXPECT_GE(rows.size(), 13u);
      for (const ParityRow& row : rows) {
        EXPECT_TRUE(row.ok()) << name << " " << row.tensor << " " << row.error << " at "
                              << row.worst;
      }
    }
  }
}

TEST(models_sit, ParityNoticesAWrongNetwork) {
  const auto model = load_velocity_model(test::golden("sit_a_ema.safetensors"),
                                         {{"num_heads", "2"}});  // wrong number of heads
  const auto rows = compare_with_reference(
      *model.model, nullptr, read_safetensors(test::golden("sit_a_forward.safetensors")).tensors);
  EXPECT_FALSE(rows.front().ok());
}

TEST(models_sit, HeadsMustBeGivenWhenTheyDoNotShow) {
  test::expect_error(ErrorKind::kBadFile, "number of attention heads",
                     [] { load_velocity_model(test::golden("sit_a_ema.safetensors")); });
  test::expect_error(ErrorKind::kConfig, "did you mean 'num_heads'", [] {
    load_velocity_model(test::golden("sit_a_ema.safetensors"), {{"num_head", "4"}});
  });
}

TEST(models_sit, OfficialSizes) {
  const SitConfig xl = sit_preset("SiT-XL/2");
  EXPECT_EQ(xl.hidden_size, 1152);
  EXPECT_EQ(xl.depth, 28);
  EXPECT_EQ(xl.num_heads, 16);
  for (const char* size : {"S", "B", "L", "XL"}) {
    for (const char* patch : {"2", "4", "8"}) {
      EXPECT_NO_THROW(sit_preset(std::string("SiT-") + size + "/" + patch));
    }
  }
  test::expect_error(ErrorKind::kConfig, "did you mean 'SiT-S/2'", [] { sit_preset("SiT-S2"); });
  // parameters of SiT-S/2 as published: 33 M
  SitConfig s = sit_preset("SiT-S/2");
  EXPECT_NEAR(static_cast<double>(init_sit(s, RandomStreams(0)).numel()), 33.0e6, 0.3e6);
}

TEST(models_sit, ActivationCheckpointingChangesNothing) {
  const SitConfig config = tiny_parity_config();
  ParameterSet weights;
  for (const auto& [name, tensor] : init_sit(config, RandomStreams(1))) {
    weights.add(name, (name == "pos_embed" ? tensor : tensor + 0.05)
                          .to(at::kDouble)
                          .set_requires_grad(name != "pos_embed"));
  }
  const at::Tensor x = at::randn({3, 1, 8, 8}, at::kDouble);
  const at::Tensor t = at::rand({3}, at::kDouble);
  const Condition labels{at::tensor(std::vector<std::int64_t>{0, 1, 3})};
  std::vector<at::Tensor> wanted{weights.at("blocks.0.attn.qkv.weight"),
                                 weights.at("x_embedder.proj.weight"),
                                 weights.at("t_embedder.mlp.0.weight")};
  const auto gradients = [&](bool checkpointing) {
    const auto model = make_sit(config, weights, {},
                                {MatmulPrecision::kFull, AttentionBackend::kMath, checkpointing});
    return torch::autograd::grad({model->velocity(x, t, labels).square().sum()}, wanted);
  };
  const auto plain = gradients(false);
  const auto saved = gradients(true);
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    EXPECT_LT(test::relative_error(saved[i], plain[i]), 1e-12);
  }
}

TEST(models_sit, UnconditionalEqualsTheNullClass) {
  const auto loaded =
      load_velocity_model(test::golden("sit_b_ema.safetensors"), {{"num_heads", "3"}});
  const at::NoGradGuard no_grad;
  const at::Tensor x = at::randn({3, 1, 28, 28});
  const at::Tensor a = loaded.model->velocity(x, time_tensor(0.3, x), {});
  const at::Tensor b =
      loaded.model->velocity(x, at::full({3}, 0.3), {at::full({3}, 10, at::kLong)});
  EXPECT_LT(test::relative_error(a, b), 1e-6);
}

TEST(models_sit, LabelsOutOfRangeAreRefused) {
  const auto loaded =
      load_velocity_model(test::golden("sit_b_ema.safetensors"), {{"num_heads", "3"}});
  const at::Tensor x = at::zeros({2, 1, 28, 28});
  for (const std::int64_t bad : {-1, 11}) {
    test::expect_error(ErrorKind::kFailure, "labels are 0 to 10", [&] {
      loaded.model->velocity(x, time_tensor(0.3, x),
                             {at::tensor(std::vector<std::int64_t>{3, bad})});
    });
  }
}

TEST(models_sit, Bf16StaysClose) {
  const std::map<std::string, std::string> args{{"num_heads", "3"}};
  const auto full = load_velocity_model(test::golden("sit_b_ema.safetensors"), args);
  const auto half = load_velocity_model(test::golden("sit_b_ema.safetensors"), args,
                                        {MatmulPrecision::kBf16, AttentionBackend::kFused, false});
  const ParameterSet g = read_safetensors(test::golden("sit_b_forward.safetensors")).tensors;
  const at::NoGradGuard no_grad;
  const double error =
      test::relative_error(half.model->velocity(g.at("x"), g.at("t"), {g.at("y")}), g.at("out"));
  EXPECT_LT(error, 0.03);
  EXPECT_GT(error, 1e-5);
}

}  // namespace tiltflow
