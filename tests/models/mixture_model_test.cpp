#include "tiltflow/models/mixture/mixture_model.h"
#include "tests/support.h"
#include "tiltflow/io/safetensors.h"
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

}  // namespace

TEST(models_mixture_model, IsTheExactFlowAndSurvivesItsFile) {
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

TEST(models_mixture_model, SaysWhatIsWrong) {
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

TEST(models_mixture_model, LogDensityRewardTiltsTheNormalIntoTheMixture) {
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

}  // namespace tiltflow
