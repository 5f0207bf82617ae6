#include "tiltflow/policy/policy.h"

#include "tests/support.h"
#include "tiltflow/policy/lora.h"
#include "tiltflow/models/sit/sit.h"

namespace tiltflow {
namespace {

std::unique_ptr<VelocityModel> tiny_sit() {
  SitConfig c;
  c.input_size = 8, c.patch_size = 4, c.in_channels = 1, c.hidden_size = 16, c.depth = 2, c.num_heads = 2, c.num_classes = 3, c.learn_sigma = false;
  ParameterSet weights;
  std::uint32_t key = 0;
  for (const auto& [name, tensor] : init_sit(c, RandomStreams(1))) weights.add(name, name == "pos_embed" ? tensor : RandomStreams(9).normal(Purpose::kInit, 3, ++key, 0, 1, tensor.sizes())[0] * 0.2);
  return make_sit(c, weights);
}

const at::Tensor kX = RandomStreams(2).normal(Purpose::kPrior, 0, 0, 0, 3, {1, 8, 8});

at::Tensor velocity(const VelocityField& field) {
  const at::NoGradGuard no_grad;
  return field.velocity(kX, time_tensor(0.4, kX), {});
}

}  // namespace

TEST(policy_full, StartsAtTheBaseAndLeavesItAlone) {
  const auto model = tiny_sit();
  const Policy policy = full_policy(*model);
  EXPECT_TRUE(at::equal(velocity(*policy.base), velocity(*policy.tuned)));
  EXPECT_FALSE(policy.trainable.contains("pos_embed"));
  const at::Tensor before = velocity(*policy.base);
  policy.trainable.at("final_layer.linear.weight").detach().add_(0.1);
  EXPECT_TRUE(at::equal(velocity(*policy.base), before));
  EXPECT_FALSE(at::equal(velocity(*policy.tuned), before));
}

TEST(policy_lora, SharesTheBaseAndStartsAtIt) {
  const auto model = tiny_sit();
  PolicyConfig config;
  config.kind = "lora", config.rank = 2, config.alpha = 6;
  const Policy policy = make_policy(*model, config, 0);
  EXPECT_EQ(policy.trainable.size(), 2u * 2 * 4);  // A and B of qkv, proj, fc1, fc2 in two blocks
  EXPECT_TRUE(at::equal(velocity(*policy.base), velocity(*policy.tuned)));
  const auto& base = dynamic_cast<const VelocityModel&>(*policy.base);
  EXPECT_EQ(base.parameters().at("blocks.0.attn.qkv.weight").data_ptr(), model->parameters().at("blocks.0.attn.qkv.weight").data_ptr());
  // no gradient reaches the base's weights
  const at::AutoGradMode grad(true);
  EXPECT_FALSE(base.parameters().at("blocks.0.attn.qkv.weight").requires_grad());
}

TEST(policy_lora, MergingEqualsTheAdapterAtEveryStrength) {
  const auto model = tiny_sit();
  PolicyConfig config;
  config.kind = "lora", config.rank = 3, config.alpha = 6, config.targets = {"*.qkv", "final_layer.linear", "*.adaLN_modulation.1"};
  const Policy policy = make_policy(*model, config, 0);
  std::uint32_t key = 0;
  for (const auto& [name, tensor] : policy.trainable) tensor.detach().copy_(RandomStreams(5).normal(Purpose::kInit, 4, ++key, 0, 1, tensor.sizes())[0] * 0.3);
  const at::Tensor merged = velocity(*model->rebind(merged_weights(*model, config, policy.trainable), {}));
  EXPECT_LT(test::relative_error(merged, velocity(*policy.tuned)), 1e-5);
  EXPECT_GT(test::relative_error(merged, velocity(*policy.base)), 1e-2);
  EXPECT_LT(test::relative_error(velocity(*model->rebind(merged_weights(*model, config, policy.trainable, 0), {})), velocity(*policy.base)), 1e-6);
  const at::Tensor half = velocity(*model->rebind(model->parameters(), adapters_from(policy.trainable, 0.5 * 6 / 3)));
  EXPECT_LT(test::relative_error(velocity(*model->rebind(merged_weights(*model, config, policy.trainable, 0.5), {})), half), 1e-5);
}

TEST(policy_lora, BadInput) {
  const auto model = tiny_sit();
  PolicyConfig config;
  config.kind = "lora", config.targets = {"*.nothing"};
  test::expect_error(ErrorKind::kConfig, "match no layer", [&] { make_policy(*model, config, 0); });
  ParameterSet stray;
  stray.add("base_model.model.blocks.0.attn.qkv.lora_A.weight", at::zeros({2, 16}));
  test::expect_error(ErrorKind::kBadFile, "incomplete", [&] { adapters_from(stray, 1); });
  stray.add("x.weight", at::zeros({2}));
  test::expect_error(ErrorKind::kBadFile, "not a LoRA tensor", [&] { adapters_from(stray, 1); });
}

}  // namespace tiltflow
