#include "tiltflow/policy/policy.h"
#include "tests/policy/tiny_policy.h"
#include "tests/support.h"
#include "tiltflow/models/control/control_net.h"

namespace tiltflow {
namespace {

using test::flow_of;
using test::kTinyInput;
using test::tiny_sit;
using test::velocity_of;

}  // namespace

TEST(policy_policy, StartsAtTheBaseAndLeavesItAlone) {
  const auto model = tiny_sit();
  const Policy policy = full_policy(*model);
  EXPECT_TRUE(at::equal(velocity_of(*policy.base), velocity_of(*policy.tuned)));
  EXPECT_FALSE(policy.trainable.contains("pos_embed"));
  const at::Tensor before = velocity_of(*policy.base);
  policy.trainable.at("final_layer.linear.weight").detach().add_(0.1);
  EXPECT_TRUE(at::equal(velocity_of(*policy.base), before));
  EXPECT_FALSE(at::equal(velocity_of(*policy.tuned), before));
}

TEST(policy_policy, ChosenTensorsOnly) {
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
TEST(policy_policy, KindsAreConditionedAndStartAtTheBase) {
  const auto model = tiny_sit();
  for (const std::string& kind : control_kinds()) {
    PolicyConfig config;
    config.kind = "control";
    config.control = {kind, 16, 2};
    const Policy policy = make_policy(flow_of(model), config, 0);
    EXPECT_TRUE(at::equal(velocity_of(*policy.base), velocity_of(*policy.tuned))) << kind;
    // The adjoint of the base is not zero, and the output layer gets a gradient at once.
    const at::Tensor ones = at::ones_like(kTinyInput);
    const at::Tensor t = time_tensor(0.4, kTinyInput);
    EXPECT_GT(policy.tuned->vjp(kTinyInput, t, {}, ones).input_gradient.abs().max().item<double>(),
              1e-3)
        << kind;
    const at::AutoGradMode grad(true);
    const auto gradients =
        torch::autograd::grad({policy.tuned->velocity(kTinyInput, t, {}).sum()},
                              policy.trainable.tensors(), {}, std::nullopt, false, true);
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
      return policy.tuned->velocity(kTinyInput, time_tensor(at_time, kTinyInput), condition) -
             policy.base->velocity(kTinyInput, time_tensor(at_time, kTinyInput), condition);
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
    EXPECT_LT(
        test::relative_error(velocity_of(*load_velocity_model(dir / "model.safetensors").model),
                             velocity_of(*policy.tuned)),
        1e-6)
        << kind;
    EXPECT_LT(test::relative_error(
                  velocity_of(*merged_model(flow_of(model), config, policy.trainable, 0)),
                  velocity_of(*policy.base)),
              1e-6)
        << kind;
  }
}

// The gradient of a control network's loss by finite differences in double.
TEST(policy_policy, GradientAgainstFiniteDifferences) {
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

}  // namespace tiltflow
