#include <cmath>

#include "tests/policy/tiny_policy.h"
#include "tests/support.h"
#include "tiltflow/base/file.h"
#include "tiltflow/policy/lora.h"
#include "tiltflow/policy/policy.h"

namespace tiltflow {
namespace {

using test::flow_of;
using test::tiny_sit;
using test::velocity_of;

}  // namespace

TEST(policy_lora, SharesTheBaseAndStartsAtIt) {
  const auto model = tiny_sit();
  PolicyConfig config;
  config.kind = "lora";
  config.rank = 2;
  config.alpha = 6;
  const Policy policy = make_policy(flow_of(model), config, 0);
  EXPECT_EQ(policy.trainable.size(), 2u * 2 * 4);  // A and B of qkv, proj, fc1, fc2 in two blocks
  EXPECT_TRUE(at::equal(velocity_of(*policy.base), velocity_of(*policy.tuned)));
  const auto& base = dynamic_cast<const VelocityModel&>(*policy.base);
  EXPECT_EQ(base.parameters().at("blocks.0.attn.qkv.weight").data_ptr(),
            model->parameters().at("blocks.0.attn.qkv.weight").data_ptr());
  // no gradient reaches the base's weights
  const at::AutoGradMode grad(true);
  EXPECT_FALSE(base.parameters().at("blocks.0.attn.qkv.weight").requires_grad());
}

TEST(policy_lora, MergingEqualsTheAdapterAtEveryStrength) {
  const auto model = tiny_sit();
  PolicyConfig config;
  config.kind = "lora";
  config.rank = 3;
  config.alpha = 6;
  config.targets = {"*.qkv", "final_layer.linear", "*.adaLN_modulation.1"};
  const Policy policy = make_policy(flow_of(model), config, 0);
  std::uint32_t key = 0;
  for (const auto& [name, tensor] : policy.trainable) {
    tensor.detach().copy_(
        RandomStreams(5).normal(Purpose::kInit, 4, ++key, 0, 1, tensor.sizes())[0] * 0.3);
  }
  const at::Tensor merged = velocity_of(*merged_model(flow_of(model), config, policy.trainable));
  EXPECT_LT(test::relative_error(merged, velocity_of(*policy.tuned)), 1e-5);
  EXPECT_GT(test::relative_error(merged, velocity_of(*policy.base)), 1e-2);
  EXPECT_LT(
      test::relative_error(velocity_of(*merged_model(flow_of(model), config, policy.trainable, 0)),
                           velocity_of(*policy.base)),
      1e-6);
  const at::Tensor half = velocity_of(
      *model->rebind(model->parameters(), adapters_from(policy.trainable, 0.5 * 6 / 3)));
  EXPECT_LT(test::relative_error(
                velocity_of(*merged_model(flow_of(model), config, policy.trainable, 0.5)), half),
            1e-5);
}

TEST(policy_lora, PeftFoldersGoOutAndIn) {
  const test::TempDir dir;
  const auto model = tiny_sit();
  PolicyConfig config;
  config.kind = "lora";
  config.rank = 3;
  config.alpha = 6;
  const Policy policy = make_policy(flow_of(model), config, 0);
  std::uint32_t key = 0;
  for (const auto& [name, tensor] : policy.trainable) {
    tensor.detach().copy_(
        RandomStreams(5).normal(Purpose::kInit, 4, ++key, 0, 1, tensor.sizes())[0] * 0.3);
  }
  write_adapters(dir / "adapter", policy.trainable, 3, 6);
  for (const char* name : {"adapter", "adapter/adapter_model.safetensors"}) {
    const at::Tensor again = velocity_of(
        *model->rebind(merge_adapters(model->parameters(), read_adapters(dir / name, 1)), {}));
    EXPECT_LT(test::relative_error(again, velocity_of(*policy.tuned)), 1e-5) << name;
  }
  // PEFT's own: rslora, one alpha of its own, ranks that differ by layer.
  const std::filesystem::path golden = test::source_dir() / "tests/golden/lora";
  const ParameterSet base =
      read_safetensors(golden / "peft_linear_rslora_base.safetensors").tensors;
  const ParameterSet io = read_safetensors(golden / "peft_linear_rslora_io.safetensors").tensors;
  const ParameterSet merged = merge_adapters(base, read_adapters(golden / "peft_linear_rslora", 1));
  EXPECT_LT(test::relative_error(merged.at("blocks.0.attn.qkv.weight"), io.at("merged_qkv0")),
            1e-5);
  EXPECT_LT(test::relative_error(merged.at("blocks.1.mlp.fc2.weight"), io.at("merged_fc2_last")),
            1e-5);
  const AdapterSet adapters = read_adapters(golden / "peft_linear_rslora", 1);
  EXPECT_NEAR(adapters.at("blocks.0.mlp.fc2").scale, 5 / std::sqrt(3.0), 1e-9);   // alpha_pattern
  EXPECT_NEAR(adapters.at("blocks.1.attn.qkv").scale, 8 / std::sqrt(2.0), 1e-9);  // rank_pattern
  // Kinds that would be merged wrongly are refused.
  std::filesystem::copy(golden / "peft_linear_rslora", dir / "dora");
  std::filesystem::permissions(dir / "dora/adapter_config.json", std::filesystem::perms::owner_all);
  write_file_atomic(dir / "dora/adapter_config.json",
                    R"({"peft_type": "LORA", "lora_alpha": 8, "r": 4, "use_dora": true})");
  test::expect_error(ErrorKind::kBadFile, "use_dora is not supported",
                     [&] { read_adapters(dir / "dora", 1); });
  write_file_atomic(dir / "dora/adapter_config.json",
                    R"({"lora_alpha": 8, "alpha_pattern": {"(a*)*b": 1}})");
  test::expect_error(ErrorKind::kBadFile, "too complicated",
                     [&] { read_adapters(dir / "dora", 1); });
  write_file_atomic(dir / "dora/adapter_config.json", "{");
  test::expect_error(ErrorKind::kBadFile, "not an adapter configuration",
                     [&] { read_adapters(dir / "dora", 1); });
}

TEST(policy_lora, BadInput) {
  const auto model = tiny_sit();
  PolicyConfig config;
  config.kind = "lora";
  config.targets = {"*.nothing"};
  test::expect_error(ErrorKind::kConfig, "match no layer",
                     [&] { make_policy(flow_of(model), config, 0); });
  config.targets = {"*.qkv", "*.attn.porj"};  // one of them is mistyped
  test::expect_error(ErrorKind::kConfig, "'*.attn.porj' matches nothing in this model",
                     [&] { make_policy(flow_of(model), config, 0); });
  config.kind = "full";
  config.trainable = {"blocks.1.*", "blocks.7.*"};
  test::expect_error(ErrorKind::kConfig, "policy.trainable: 'blocks.7.*' matches nothing",
                     [&] { make_policy(flow_of(model), config, 0); });
  test::expect_error(ErrorKind::kConfig, "'blocks.7.*' matches nothing",
                     [&] { trainable_bytes(flow_of(model), config); });
  ParameterSet stray;
  stray.add("base_model.model.blocks.0.attn.qkv.lora_A.weight", at::zeros({2, 16}));
  test::expect_error(ErrorKind::kBadFile, "incomplete", [&] { adapters_from(stray, 1); });
  stray.add("x.weight", at::zeros({2}));
  test::expect_error(ErrorKind::kBadFile, "not a LoRA tensor", [&] { adapters_from(stray, 1); });
}

}  // namespace tiltflow
