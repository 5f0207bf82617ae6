#include "tiltflow/policy/policy.h"

#include <cmath>

#include "tests/support.h"
#include "tiltflow/base/file.h"
#include "tiltflow/models/control/control_net.h"
#include "tiltflow/models/sit/sit.h"
#include "tiltflow/policy/lora.h"

namespace tiltflow {
namespace {

std::shared_ptr<const VelocityModel> tiny_sit() {
  SitConfig c;
  c.input_size = 8;
  c.patch_size = 4;
  c.in_channels = 1;
  c.hidden_size = 16;
  c.depth = 2;
  c.num_heads = 2;
  c.num_classes = 3;
  c.learn_sigma = false;
  ParameterSet weights;
  std::uint32_t key = 0;
  for (const auto& [name, tensor] : init_sit(c, RandomStreams(1))) {
    weights.add(name, name == "pos_embed" ? tensor
                                          : RandomStreams(9).normal(Purpose::kInit, 3, ++key, 0, 1,
                                                                    tensor.sizes())[0] *
                                                0.2);
  }
  return make_sit(c, weights);
}

FlowModel flow_of(std::shared_ptr<const VelocityModel> model) {
  return {std::move(model), make_path("linear"), "velocity"};
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
  config.kind = "lora";
  config.rank = 2;
  config.alpha = 6;
  const Policy policy = make_policy(flow_of(model), config, 0);
  EXPECT_EQ(policy.trainable.size(), 2u * 2 * 4);  // A and B of qkv, proj, fc1, fc2 in two blocks
  EXPECT_TRUE(at::equal(velocity(*policy.base), velocity(*policy.tuned)));
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
  const at::Tensor merged = velocity(*merged_model(flow_of(model), config, policy.trainable));
  EXPECT_LT(test::relative_error(merged, velocity(*policy.tuned)), 1e-5);
  EXPECT_GT(test::relative_error(merged, velocity(*policy.base)), 1e-2);
  EXPECT_LT(
      test::relative_error(velocity(*merged_model(flow_of(model), config, policy.trainable, 0)),
                           velocity(*policy.base)),
      1e-6);
  const at::Tensor half =
      velocity(*model->rebind(model->parameters(), adapters_from(policy.trainable, 0.5 * 6 / 3)));
  EXPECT_LT(test::relative_error(
                velocity(*merged_model(flow_of(model), config, policy.trainable, 0.5)), half),
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
    const at::Tensor again = velocity(
        *model->rebind(merge_adapters(model->parameters(), read_adapters(dir / name, 1)), {}));
    EXPECT_LT(test::relative_error(again, velocity(*policy.tuned)), 1e-5) << name;
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

TEST(policy_full, ChosenTensorsOnly) {
  const auto model = tiny_sit();
  PolicyConfig config;
  config.trainable = {"blocks.1.*", "final_layer.*"};
  const Policy policy = make_policy(flow_of(model), config, 0);
  for (const auto& [name, tensor] : policy.trainable) {
    EXPECT_TRUE(name.rfind("blocks.1.", 0) == 0 || name.rfind("final_layer.", 0) == 0) << name;
  }
  EXPECT_GT(policy.trainable.size(), 10u);
  const auto& tuned = dynamic_cast<const VelocityModel&>(*policy.tuned);
  EXPECT_EQ(tuned.parameters().at("blocks.0.attn.qkv.weight").data_ptr(),
            model->parameters().at("blocks.0.attn.qkv.weight").data_ptr())
      << "the rest is shared";
  config.trainable = {"block.*"};
  test::expect_error(ErrorKind::kConfig, "matches no tensor",
                     [&] { make_policy(flow_of(model), config, 0); });
}

// Every kind of control network: the base at the start, gradients of the state and of the weights,
// conditioned on time and label, one file that holds it all.
TEST(policy_control, KindsAreConditionedAndStartAtTheBase) {
  const auto model = tiny_sit();
  for (const std::string& kind : control_kinds()) {
    PolicyConfig config;
    config.kind = "control";
    config.control = {kind, 16, 2};
    const Policy policy = make_policy(flow_of(model), config, 0);
    EXPECT_TRUE(at::equal(velocity(*policy.base), velocity(*policy.tuned))) << kind;
    // The adjoint of the base is not zero, and the output layer gets a gradient at once.
    const at::Tensor ones = at::ones_like(kX);
    const at::Tensor t = time_tensor(0.4, kX);
    EXPECT_GT(policy.tuned->vjp(kX, t, {}, ones).input_gradient.abs().max().item<double>(), 1e-3)
        << kind;
    const at::AutoGradMode grad(true);
    const auto gradients =
        torch::autograd::grad({policy.tuned->velocity(kX, t, {}).sum()}, policy.trainable.tensors(),
                              {}, std::nullopt, false, true);
    double largest = 0;
    for (const at::Tensor& g : gradients) {
      if (g.defined()) largest = std::max(largest, g.abs().max().item<double>());
    }
    EXPECT_GT(largest, 1e-3) << kind;

    std::uint32_t key = 0;
    for (const auto& [name, tensor] : policy.trainable) {
      tensor.detach().copy_(
          RandomStreams(5).normal(Purpose::kInit, 4, ++key, 0, 1, tensor.sizes())[0] * 0.3);
    }
    const at::NoGradGuard no_grad;
    const auto control = [&](double at_time, const Condition& condition) {
      return policy.tuned->velocity(kX, time_tensor(at_time, kX), condition) -
             policy.base->velocity(kX, time_tensor(at_time, kX), condition);
    };
    EXPECT_GT(test::relative_error(control(0.5, {}), control(0.55, {})), 0.05) << kind << ": time";
    EXPECT_GT(test::relative_error(control(0.5, {at::zeros({3}, at::kLong)}),
                                   control(0.5, {at::ones({3}, at::kLong)})),
              0.05)
        << kind << ": label";
    EXPECT_LT(test::relative_error(control(0.5, {}), control(0.5, {at::full({3}, 3, at::kLong)})),
              1e-4)
        << kind << ": no label is the null class";

    const test::TempDir dir;
    const auto merged = merged_model(flow_of(model), config, policy.trainable);
    save_velocity_model(dir / "model.safetensors", *merged, merged->parameters(),
                        flow_of(model).metadata());
    EXPECT_LT(test::relative_error(velocity(*load_velocity_model(dir / "model.safetensors").model),
                                   velocity(*policy.tuned)),
              1e-6)
        << kind;
    EXPECT_LT(
        test::relative_error(velocity(*merged_model(flow_of(model), config, policy.trainable, 0)),
                             velocity(*policy.base)),
        1e-6)
        << kind;
  }
}

// The gradient of a control network's loss by finite differences in double.
TEST(policy_control, GradientAgainstFiniteDifferences) {
  for (const std::string& kind : control_kinds()) {
    const ControlConfig config{kind, 8, 2};
    ParameterSet p;
    std::uint32_t key = 0;
    for (const auto& [name, tensor] : init_control(config, {1, 4, 4}, 3, RandomStreams(1))) {
      p.add(name, RandomStreams(9).normal(Purpose::kInit, 3, ++key, 0, 1, tensor.sizes(),
                                          at::kDouble)[0] *
                      0.3);
    }
    const at::Tensor x =
        RandomStreams(2).normal(Purpose::kPrior, 0, 0, 0, 2, {1, 4, 4}, at::kDouble);
    const at::Tensor t = at::tensor({0.2, 0.7}, at::kDouble);
    const Condition labels{at::tensor({1, 3}, at::kLong)};
    const auto loss = [&](const ParameterSet& q, const at::Tensor& state) {
      return control_output(config, q, state, t, labels).square().sum();
    };
    const ParameterSet leaves = clone(p, true);
    const at::Tensor state = x.clone().set_requires_grad(true);
    const at::AutoGradMode grad(true);
    std::vector<at::Tensor> inputs = leaves.tensors();
    inputs.push_back(state);
    const auto gradients = torch::autograd::grad({loss(leaves, state)}, inputs);
    double slope = 0;
    ParameterSet plus, minus;
    std::size_t i = 0;
    const double h = 1e-6;
    for (const auto& [name, tensor] : p) {
      const at::Tensor direction = RandomStreams(7).normal(
          Purpose::kProbe, 0, static_cast<std::uint32_t>(i), 0, 1, tensor.sizes(), at::kDouble)[0];
      slope += (gradients[i++] * direction).sum().item<double>();
      plus.add(name, tensor + direction * h);
      minus.add(name, tensor - direction * h);
    }
    const at::Tensor direction =
        RandomStreams(8).normal(Purpose::kProbe, 0, 0, 0, 2, {1, 4, 4}, at::kDouble);
    slope += (gradients.back() * direction).sum().item<double>();
    const double numeric =
        (loss(plus, x + direction * h) - loss(minus, x - direction * h)).item<double>() / (2 * h);
    EXPECT_NEAR(numeric / slope, 1, 1e-6) << kind;
  }
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
