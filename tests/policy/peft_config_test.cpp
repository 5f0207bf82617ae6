#include "tiltflow/policy/peft_config.h"
#include "tests/support.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/torch_file.h"
#include "tiltflow/policy/lora.h"

namespace tiltflow {
namespace {

std::filesystem::path configured(const test::TempDir& dir, const std::string& options) {
  write_file_atomic(dir / "adapter_config.json",
                    cat(R"({"peft_type": "LORA", "r": 2, "lora_alpha": 4)",
                        options.empty() ? "" : ", ", options, "}"));
  return dir / "adapter_config.json";
}

double scale(const std::string& options, const std::string& layer = "blocks.0.attn.qkv",
             std::int64_t rank = 2) {
  const test::TempDir dir;
  return PeftConfig(configured(dir, options)).scale(layer, rank);
}

void refuse(const std::string& options, const std::string& text) {
  test::expect_error(ErrorKind::kBadFile, text, [&] { scale(options); });
}

void refuse_names(const std::vector<std::string>& names, const std::string& text) {
  ParameterSet tensors;
  for (const std::string& name : names) tensors.add(name, at::zeros({2, 2}));
  test::expect_error(ErrorKind::kBadFile, text, [&] { adapters_from(tensors, 1); });
}

}  // namespace

TEST(policy_peft_config, OptionsThatChangeTheMathematicsAreRefusedByName) {
  refuse(R"("use_dora": true)", "use_dora is not supported");
  refuse(R"("fan_in_fan_out": true)", "fan_in_fan_out is not supported");
  refuse(R"("lora_bias": true)", "lora_bias is not supported");
  refuse(R"("bias": "lora_only")", "bias = \"lora_only\" is not supported");
  refuse(R"("modules_to_save": ["final_layer"])", "modules_to_save is not supported");
  refuse(R"("layer_replication": [[0, 4]])", "layer_replication is not supported");
  refuse(R"("megatron_config": {"a": 1})", "megatron_config is not supported");
  refuse(R"("target_parameters": ["experts"])", "target_parameters is not supported");
  refuse(R"("option_of_the_future": 3)", "option_of_the_future is not supported");
  refuse(R"("peft_type": "LOHA")", "peft_type LOHA is not LORA");
  for (const char* init :
       {"pissa", "pissa_niter_4", "olora", "OLoRA", "corda", "loftq", "lora_ga", "mica"}) {
    refuse(cat("\"init_lora_weights\": \"", init, "\""),
           cat("init_lora_weights = \"", init, "\" is not supported"));
  }
}

TEST(policy_peft_config, OptionsWithoutEffectAreAccepted) {
  EXPECT_EQ(scale(""), 2);
  EXPECT_EQ(
      scale(
          R"("use_dora": false, "modules_to_save": null, "bias": "none", "layer_replication": null, "option_of_the_future": [])"),
      2);
  EXPECT_EQ(
      scale(
          R"("layers_to_transform": [0, 1], "lora_dropout": 0.1, "task_type": "FEATURE_EXTRACTION")"),
      2);
  for (const char* init : {"true", "false", "null", "\"gaussian\"", "\"eva\"", "\"orthogonal\""}) {
    EXPECT_EQ(scale(cat("\"init_lora_weights\": ", init)), 2) << init;
  }
}

// alpha / sqrt(r); of several patterns the first in the file counts, as in PEFT.
TEST(policy_peft_config, ScalesFollowThePatterns) {
  EXPECT_NEAR(scale(R"("use_rslora": true)"), 4 / std::sqrt(2.0), 1e-12);
  EXPECT_EQ(scale(R"("alpha_pattern": {"qkv": 10, "attn.qkv": 20})"), 5);
  EXPECT_EQ(scale(R"("alpha_pattern": {"blocks.0.attn.qkv": 20, "attn.qkv": 10})"), 10);
  EXPECT_EQ(scale(R"("alpha_pattern": {"kv": 20})"), 2);
  EXPECT_EQ(scale(R"("rank_pattern": {"qkv": 8})", "blocks.0.attn.qkv", 8), 0.5);
  test::expect_error(ErrorKind::kBadFile, "has rank 3 in the tensors and 2 here",
                     [] { scale("", "blocks.0.attn.qkv", 3); });
}

// Python's anchors are letters in the expressions of C++.
TEST(policy_peft_config, PatternsThatPythonReadsOtherwiseAreRefused) {
  EXPECT_EQ(scale(R"("alpha_pattern": {"blocks\\.\\d+\\.attn\\.qkv$": 20})"), 10);
  refuse(R"("alpha_pattern": {"\\Ablocks.*": 20})", "is too complicated");
}

// The product of half-precision factors is not rounded: 1 + 2^-8 has no bf16.
TEST(policy_peft_config, HalfPrecisionFactorsAreMultipliedInSingle) {
  ParameterSet tensors;
  tensors.add("fc.lora_A.weight", at::full({2, 1}, 1.0, at::kBFloat16));
  tensors.add("fc.lora_B.weight", at::tensor({1.0, 1.0 / 256}).view({1, 2}).to(at::kBFloat16));
  ParameterSet base;
  base.add("fc.weight", at::zeros({1, 1}));
  EXPECT_EQ(merge_adapters(base, adapters_from(tensors, 1)).at("fc.weight").item<float>(),
            1 + 1.0f / 256);
}

TEST(policy_peft_config, OtherAdaptersAreNamed) {
  refuse_names({"lora_unet_down_blocks_0_attn.lora_down.weight"}, "kohya's trainer, for a UNet");
  refuse_names({"blocks.0.attn.lora_down.weight"}, "kohya's names");
  refuse_names({"unet.a.lora.up.weight"}, "old names of diffusers");
  refuse_names({"a.hada_w1_a"}, "a LoHa adapter");
  refuse_names({"base_model.model.a.lora_magnitude_vector.weight"}, "a part of DoRA");
  refuse_names({"base_model.model.a.lora_A.default.weight"}, "save it with save_pretrained");
  refuse_names({"base_model.model.a.base_layer.weight"}, "an unmerged PEFT model");
  refuse_names({"a.lora_A.weight"}, "'a' are incomplete: lora_B is missing");
  refuse_names({}, "has no tensors");
  ParameterSet convolution;
  convolution.add("a.lora_A.weight", at::zeros({2, 3, 3, 3}));
  test::expect_error(ErrorKind::kBadFile, "the LoRA of a convolution [2, 3, 3, 3]",
                     [&] { adapters_from(convolution, 1); });
}

// The pickled form of older versions, and an adapter of another model.
TEST(policy_peft_config, FoldersWithPickledTensors) {
  const test::TempDir dir;
  configured(dir, "");
  ParameterSet adapter;
  adapter.add("base_model.model.fc.lora_A.weight", at::ones({2, 3}));
  adapter.add("base_model.model.fc.lora_B.weight", at::ones({4, 2}));
  write_torch_file(dir / "adapter_model.bin", {{"", adapter}});
  ParameterSet base, other;
  base.add("fc.weight", at::zeros({4, 3}));
  other.add("fc2.weight", at::zeros({4, 3}));
  EXPECT_EQ(
      merge_adapters(base, read_adapters(dir.path(), 0.5)).at("fc.weight")[3][2].item<double>(),
      2);  // 0.5 x 4 / 2 x (1 + 1)
  test::expect_error(ErrorKind::kBadFile, "LoRA layer 'fc' is not part of the model",
                     [&] { merge_adapters(other, read_adapters(dir.path(), 1)); });
  std::filesystem::remove(dir / "adapter_model.bin");
  test::expect_error(ErrorKind::kBadFile, "has no adapter_model.safetensors or .bin",
                     [&] { read_adapters(dir.path(), 1); });
}

}  // namespace tiltflow
