#include "tiltflow/models/mixture/mixture_model.h"

#include "tests/support.h"
#include "tiltflow/io/safetensors.h"
#include "tiltflow/models/control/controlled_model.h"
#include "tiltflow/models/flow_model.h"
#include "tiltflow/policy/policy.h"
#include "tiltflow/reward/reward.h"

namespace tiltflow {
namespace {

FlowModelConfig modes() {
  FlowModelConfig c;
  c.family = "gaussian-mixture";
  c.args = {{"weights", "1 3"}, {"means", "-1 0; 1, 0.5"}, {"deviations", "0.5 0.7"}};
  return c;
}

TEST(models_mixture, IsTheExactFlowAndSurvivesItsFile) {
  const FlowModel flow = load_flow_model(modes());
  const at::Tensor x = RandomStreams(1).normal(Purpose::kProbe, 0, 0, 0, 16, {2});
  const at::Tensor t = at::linspace(0.05, 0.95, 16);
  GaussianMixture mixture =
      isotropic_mixture(at::tensor({0.25, 0.75}, at::kDouble),
                        at::tensor({-1.0, 0.0, 1.0, 0.5}, at::kDouble).view({2, 2}), 1);
  mixture.covariances[0] *= 0.25;
  mixture.covariances[1] *= 0.49;
  const MixtureField field(mixture, make_path("linear"));
  EXPECT_TRUE(at::allclose(flow.model->velocity(x, t, {}), field.velocity(x, t, {}), 1e-5, 1e-6));
  // Beside a control network, as a file and back.
  const test::TempDir dir;
  PolicyConfig policy;
  policy.kind = "control";
  policy.control.kind = "mlp";
  policy.control.width = 8;
  Policy made = make_policy(flow, policy, 3);
  {
    const at::NoGradGuard no_grad;
    for (const at::Tensor& w : made.trainable.tensors()) at::Tensor(w).add_(0.01);
  }
  const auto tuned = merged_model(flow, policy, made.trainable);
  save_velocity_model(dir / "m.safetensors", *tuned, tuned->parameters(), flow.metadata());
  FlowModelConfig file;
  file.file = (dir / "m.safetensors").string();
  const at::Tensor a = load_flow_model(file).model->velocity(x, t, {});
  const at::Tensor b = tuned->velocity(x, t, {});
  EXPECT_TRUE(at::allclose(a, b, 1e-4, 1e-5));
  EXPECT_FALSE(at::allclose(a, field.velocity(x, t, {}), 1e-3, 1e-3));
  file.path = "gvp";
  test::expect_error(ErrorKind::kConfig, "belongs to the linear path",
                     [&] { load_flow_model(file); });
}

// The control of kind potential is the gradient of its scalar, and its own gradient in the weights
// is right (second order).
TEST(models_control, PotentialIsAGradientAndDifferentiable) {
  const ControlConfig config{"potential", 8, 2};
  ParameterSet weights;
  std::uint32_t key = 0;
  for (const auto& [name, tensor] : init_control(config, {3}, 2, RandomStreams(1))) {
    weights.add(name, (tensor.to(at::kDouble) +
                       0.3 * RandomStreams(2).normal(Purpose::kProbe, ++key, 0, 0, 1,
                                                     tensor.sizes(), at::kDouble)[0])
                          .set_requires_grad(true));
  }
  const at::Tensor x = RandomStreams(3).normal(Purpose::kProbe, 0, 0, 0, 4, {3}, at::kDouble);
  const at::Tensor t = at::linspace(0.1, 0.9, 4, at::kDouble);
  const Condition c{at::tensor({0, 1, 2, 2}, at::kLong)};
  const auto output = [&](const at::Tensor& at_x) {
    const at::NoGradGuard no_grad;
    return control_output(config, weights, at_x, t, c);
  };
  const auto potential = [&](const at::Tensor& at_x) {
    const at::NoGradGuard no_grad;
    return control_potential(config, weights, at_x, t, c);
  };
  const double h = 1e-5;
  for (std::int64_t i = 0; i < 3; ++i) {
    const at::Tensor step = at::zeros({1, 3}, at::kDouble);
    step[0][i] = h;
    EXPECT_TRUE(at::allclose(output(x).select(1, i),
                             (potential(x + step) - potential(x - step)) / (2 * h), 1e-6, 1e-8))
        << i;
  }
  const at::AutoGradMode grad(true);
  const at::Tensor probe = RandomStreams(4).normal(Purpose::kProbe, 0, 0, 0, 4, {3}, at::kDouble);
  const at::Tensor& w = weights.at("layers.0.weight");
  const at::Tensor g =
      torch::autograd::grad({(control_output(config, weights, x, t, c) * probe).sum()}, {w})[0];
  const auto moved = [&](double by) {
    const at::NoGradGuard no_grad;
    at::Tensor(w)[1][2] += by;
    const double value = (output(x) * probe).sum().item<double>();
    at::Tensor(w)[1][2] -= by;
    return value;
  };
  EXPECT_NEAR(g[1][2].item<double>(), (moved(h) - moved(-h)) / (2 * h), 1e-6);
}

TEST(models_mixture, SaysWhatIsWrong) {
  const auto refused = [](std::map<std::string, std::string> args, const std::string& why) {
    test::expect_error(ErrorKind::kConfig, why, [&] { mixture_from_args(args); });
  };
  refused({}, "needs its means");
  refused({{"means", "1 2; 3"}}, "different lengths");
  refused({{"means", "1 x"}}, "expected numbers");
  refused({{"means", "1 nan"}}, "expected numbers");
  refused({{"means", "1; 2"}, {"weights", "1 2 3"}}, "3 numbers for 2");
  refused({{"means", "1; 2"}, {"deviations", "0"}}, "not positive");
  refused({{"mean", "1"}}, "did you mean");
  FlowModelConfig both = modes();
  both.file = "x.safetensors";
  test::expect_error(ErrorKind::kConfig, "give one of them", [&] { load_flow_model(both); });
  const test::TempDir dir;
  ParameterSet broken;
  broken.add("weights", at::ones({1}));
  broken.add("means", at::zeros({1, 2}));
  broken.add("covariances", -at::eye(2).unsqueeze(0));
  write_safetensors(dir / "b.safetensors", broken,
                    {{"tiltflow.family", "gaussian-mixture"}, {"tiltflow.args", "{}"}});
  test::expect_error(ErrorKind::kBadFile, "positive definite",
                     [&] { load_velocity_model(dir / "b.safetensors"); });
  PolicyConfig lora;
  lora.kind = "lora";
  EXPECT_THROW(make_policy(load_flow_model(modes()), lora, 0), Error);
  EXPECT_THROW(make_policy(load_flow_model(modes()), PolicyConfig{}, 0), Error);
}

TEST(models_mixture, LogDensityRewardTiltsTheNormalIntoTheMixture) {
  RewardTerm term;
  term.name = "log-density";
  term.args = {{"means", "1 0; -1 0"}, {"deviations", "0.5"}};
  const at::Tensor x = RandomStreams(2).normal(Purpose::kProbe, 0, 0, 0, 64, {2}, at::kDouble);
  const at::Tensor plain = make_reward(term)->score(x, {});
  EXPECT_TRUE(at::allclose(plain, log_density(mixture_from_args(term.args), x)));
  term.over_normal = true;
  const at::Tensor normal = log_density(mixture_from_args({{"means", "0 0"}}), x);
  EXPECT_TRUE(at::allclose(make_reward(term)->score(x, {}), plain - normal));
  test::expect_error(ErrorKind::kConfig, "has dimension 2",
                     [&] { make_reward(term)->score(x.narrow(1, 0, 1), {}); });
}

}  // namespace
}  // namespace tiltflow
