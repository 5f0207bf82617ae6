#include "tiltflow/noise/flow_generator.h"
#include "tests/noise/toy_generator.h"
#include "tests/same_bytes.h"
#include "tests/support.h"

namespace tiltflow {
namespace {

using test::kAssignStreams;

}  // namespace

TEST(noise_flow_generator, OneStepOfDiscreteSchedules) {
  const DiscreteSchedule sd("scaled-linear");
  EXPECT_NEAR(sd.sigma(999), 14.6146412, 1e-6);
  EXPECT_NEAR(sd.alpha_bar(999), 0.0046600985, 1e-9);
  EXPECT_NEAR(std::sqrt(sd.alpha_bar(999)), 0.0682649, 1e-7);
  EXPECT_NEAR(std::sqrt(1 - sd.alpha_bar(999)), 0.9976672, 1e-7);
  EXPECT_NEAR(sd.alpha_bar(0), 0.99915, 1e-6);
  EXPECT_NEAR(one_step(sd, "euler").input, 0.99767, 1e-5);
  test::expect_error(ErrorKind::kConfig, "unknown", [] { DiscreteSchedule("cosine"); });
  GeneratorConfig c;
  c.file = (test::source_dir() / "assets/mnist-sit.safetensors").string();
  c.schedule = "scaled-linear";
  const at::Tensor eps = kAssignStreams.normal(Purpose::kPrior, 0, 0, 0, 3, {1, 28, 28});
  const at::Tensor y = at::tensor({1, 2, 3}, at::kLong);
  const at::Tensor t = at::full({3}, 999.0);
  FlowModelConfig f;
  f.file = c.file;
  const auto network = load_flow_model(f).model;
  const auto sample = [&](const std::string& kind) {
    c.one_step = kind;
    return open_generator(c)->generate(eps, y);
  };
  const double sigma = sd.sigma(999);
  const double a = sd.alpha_bar(999);
  const double first = sd.alpha_bar(0);
  const at::Tensor seen =
      network->velocity(sigma * eps / std::sqrt(sigma * sigma + 1), t, Condition{y});
  const at::Tensor plain = network->velocity(eps, t, Condition{y});
  const at::Tensor x0 = (eps - std::sqrt(1 - a) * plain) / std::sqrt(a);
  EXPECT_LT(test::relative_error(sample("euler"), sigma * (eps - seen)), 1e-5);
  EXPECT_LT(test::relative_error(sample("ddpm"), x0), 1e-5);
  EXPECT_LT(
      test::relative_error(sample("tcd"), std::sqrt(first) * x0 + std::sqrt(1 - first) * plain),
      1e-5);
}

TEST(noise_flow_generator, AFlowModelIsAOneStepGenerator) {
  GeneratorConfig c;
  c.file = (test::source_dir() / "assets/mnist-sit.safetensors").string();
  c.steps = 2;
  const auto g = open_generator(c);
  EXPECT_EQ(g->noise_shape(), (std::vector<std::int64_t>{1, 28, 28}));
  const at::Tensor z =
      kAssignStreams.normal(Purpose::kPrior, 0, 0, 0, 2, {1, 28, 28}).set_requires_grad(true);
  const at::Tensor y = at::tensor({3, 4}, at::kLong);
  const at::Tensor x = g->generate(z, y);
  EXPECT_EQ(x.sizes(), z.sizes());
  EXPECT_GT(torch::autograd::grad({x.sum()}, {z})[0].abs().max().item<double>(), 0);
  const test::TempDir dir;
  save_any_generator(dir / "g.safetensors", *g, g->parameters());
  c.file = (dir / "g.safetensors").string();
  EXPECT_TRUE(at::equal(open_generator(c)->generate(z.detach(), y), x.detach()));
  c.solver = "ode-dopri5";
  test::expect_error(ErrorKind::kConfig, "no one-step generator", [&] { open_generator(c); });
}

}  // namespace tiltflow
