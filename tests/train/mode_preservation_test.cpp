#include "tiltflow/train/mode_preservation.h"
#include "tests/finetune/wrapper_bench.h"
#include "tests/support.h"
#include "tests/train/step_task.h"
#include "tiltflow/train/finetuning.h"

namespace tiltflow {
namespace {

using test::kWrapperStreams;
using test::step_task;
using test::WrapperBench;

}  // namespace

// Codes are uniform whatever their number; an untrained classifier gives a extra reward that
// depends on the code alone where its last layer is zero; its gradient is right; what it is fitted
// to it recognises.
TEST(train_mode_preservation, CodesAndBonus) {
  const WrapperBench bench;
  ModesConfig config;
  config.codes = 5;
  config.weight = 1.5;
  config.samples = 256;
  config.fits = 40;
  config.learning_rate = 1e-2;
  ModePreservation modes(config, {2}, 0, 3);
  const at::Tensor x_0 = prior_sample(kWrapperStreams, 1, 0, 20000, {2}, at::kFloat);
  const at::Tensor z = modes.codes(x_0);
  EXPECT_TRUE(z.min().item<std::int64_t>() == 0 && z.max().item<std::int64_t>() == 4);
  for (std::int64_t code = 0; code < 5; ++code) {
    EXPECT_NEAR(z.eq(code).to(at::kDouble).mean().item<double>(), 0.2, 0.01) << code;
  }
  const at::Tensor few = x_0.narrow(0, 0, 3);
  const at::AutoGradMode grad(true);
  const at::Tensor x_1 = (few * 0.7).detach().set_requires_grad(true);
  const at::Tensor g = torch::autograd::grad({modes.extra_reward(few, x_1, {}).sum()}, {x_1})[0];
  for (std::int64_t axis = 0; axis < 2; ++axis) {
    const at::Tensor step = at::zeros({3, 2});
    step.select(1, axis).fill_(1e-2);
    const at::Tensor difference = (modes.extra_reward(few, x_1.detach() + step, {}) -
                                   modes.extra_reward(few, x_1.detach() - step, {})) /
                                  2e-2;
    EXPECT_LT((difference - g.select(1, axis)).abs().max().item<double>(), 1e-3);
  }
  // The ODE keeps noise and samples together, the memoryless chain does not.
  FinetuneContext context = bench.context();
  SamplerConfig sampler;
  sampler.steps = 12;
  const TransitionTable ode =
      make_table("ddim", *bench.problem.path, grid_of(sampler, *bench.problem.path), 0);
  for (const bool memoryless : {false, true}) {
    ModePreservation fitted(config, {2}, 0, 3);
    const FinetuneContext here{
        context.policy,  context.reward, context.path, memoryless ? bench.table : ode,
        kWrapperStreams, context.labels, {2}};
    for (std::int64_t step = 0; step < 10; ++step) fitted.refresh(here, step);
    std::map<std::string, double> metrics;
    fitted.add_metrics(metrics);
    if (memoryless) {
      EXPECT_LT(metrics["mode_accuracy"], 0.3);
      EXPECT_LT(metrics["mode_bonus"], 0.1);
    } else {
      EXPECT_GT(metrics["mode_accuracy"], 0.6);
      EXPECT_GT(metrics["mode_bonus"], 0.5);
    }
  }
}

TEST(train_mode_preservation, WhatCannotWorkIsRefused) {
  FinetuneConfig config = step_task();
  config.surrogate.every = 0;
  config.modes.codes = 2;
  config.method.name = "ram";
  config.sampler.name = "half-noise";
  set_up(config);
  config.sampler.name = "auto";
  test::expect_error(ErrorKind::kConfig, "memoryless", [&] { set_up(config); });
  config.sampler.name = "half-noise";
  config.method.endpoint.screening.candidates = 32;
  test::expect_error(ErrorKind::kConfig, "where a sample starts", [&] { set_up(config); });
  config.method.name = "log-variance";
  test::expect_error(ErrorKind::kConfig, "where a sample starts", [&] { set_up(config); });
  config.method.name = "flow-grpo";
  config.modes.codes = 1;
  test::expect_error(ErrorKind::kConfig, "nothing apart", [&] { set_up(config); });
}

}  // namespace tiltflow
