// What wraps around methods: screened rollouts, stored pairs, learned rewards, mode-preserving
// rewards.
#include <cmath>

#include "tests/support.h"
#include "tiltflow/finetune/endpoint_regression.h"
#include "tiltflow/io/safetensors.h"
#include "tiltflow/models/mixture/mixture_model.h"
#include "tiltflow/sampler/fields.h"
#include "tiltflow/tensor/statistics.h"
#include "tiltflow/train/finetuning.h"
#include "tiltflow/verify/problems.h"

namespace tiltflow {
namespace {

const RandomStreams kWrapperStreams(5);

struct WrapperBench {
  ExactProblem problem = plane_modes(false);
  std::shared_ptr<CountingField> counted = std::make_shared<CountingField>(problem.base);
  Policy policy;
  TransitionTable table;
  LabelSource labels = no_labels();
  WrapperBench() {
    policy.base = problem.base;
    policy.tuned = counted;
    SamplerConfig sampler;
    sampler.steps = 12;
    table = table_of(sampler, *problem.path);
  }
  FinetuneContext context() const {
    return {policy,          *problem.reward, *problem.path, table,
            kWrapperStreams, labels,          {2},           at::kFloat};
  }
};

TEST(finetune_screening, BestAndWorstOfTheDraftsAreDrawnAgain) {
  const WrapperBench b;
  ScreeningConfig c;
  c.candidates = 16;
  MetricSums metrics;
  const auto drawn = [&](std::int64_t group) {
    return b.problem.reward->score(
        screened_end_points(b.context(), *b.counted, 3, 0, 4 * group, group, {}, c, metrics), {});
  };
  c.draft_steps = 12;  // drafts are full rollouts
  const at::Tensor all = drawn(16).view({4, 16});
  const at::Tensor kept = drawn(4).view({4, 4});
  const at::Tensor order = std::get<0>(all.sort(1, /*descending=*/true));
  EXPECT_TRUE(at::allclose(kept, at::cat({order.narrow(1, 0, 2), order.narrow(1, 14, 2)}, 1)));
  EXPECT_NEAR(metrics.averages().at("draft_correlation"), 1, 1e-6);
  // Cheap drafts rank nearly alike, and cost what is documented.
  c.draft_steps = 3;
  MetricSums cheap;
  b.counted->reset();
  screened_end_points(b.context(), *b.counted, 3, 0, 16, 4, {}, c, cheap);
  EXPECT_EQ(b.counted->count(), 64 * 3 + 16 * 12);
  EXPECT_GT(cheap.averages().at("draft_correlation"), 0.9);
  EXPECT_LT(cheap.averages().at("draft_correlation"), 1 - 1e-6);
  test::expect_error(ErrorKind::kConfig, "less than method.group", [&] {
    c.candidates = 2;
    screened_end_points(b.context(), *b.counted, 3, 0, 8, 4, {}, c, cheap);
  });
  test::expect_error(ErrorKind::kConfig, "no multiple", [&] {
    c.candidates = 8;
    screened_end_points(b.context(), *b.counted, 3, 0, 6, 4, {}, c, cheap);
  });
  // As an option of a method: advantages belong to what was drawn again.
  EndpointConfig config;
  config.advantage = {4, "group", 5};
  config.screening = {16, 3};
  EndpointRegression method("diffusion-nft", config);
  const Batch batch = method.collect(b.context(), 3, 0, 16, true);
  EXPECT_TRUE(at::allclose(batch.advantages, advantages(batch.rewards, config.advantage)));
  EXPECT_GT(batch.rewards.std().item<double>(),
            1.3 * b.problem.reward
                      ->score(screened_end_points(b.context(), *b.counted, 3, 0, 16, 16, {},
                                                  {16, 3}, cheap),
                              {})
                      .std()
                      .item<double>());
}

TEST(finetune_endpoint, StoredPairsAreThePreference) {
  const WrapperBench b;
  const test::TempDir dir;
  ParameterSet pairs;
  pairs.add("chosen", at::full({3, 2}, -1.0F));
  pairs.add("rejected", at::full({3, 2}, 1.0F));  // against the reward, which rises with x
  write_safetensors(dir / "pairs.safetensors", pairs, {});
  EndpointConfig config;
  config.pairs = (dir / "pairs.safetensors").string();
  config.beta = 1;
  config.noisings = 2;
  EndpointRegression method("dpo", config);
  b.counted->reset();
  const Batch batch = method.collect(b.context(), 0, 0, 8, false);
  EXPECT_EQ(b.counted->count(), 0);  // no rollouts
  EXPECT_LT(batch.rewards[0].item<double>(), batch.rewards[1].item<double>());
  EXPECT_NEAR(method.loss(b.context(), batch, 8).loss.item<double>(), std::log(2.0), 1e-5);
  // A velocity towards the chosen ones lowers the loss, one towards the rejected ones raises it.
  class Shifted final : public VelocityField {
   public:
    Shifted(std::shared_ptr<const VelocityField> base, double by)
        : base_(std::move(base)), by_(by) {}
    at::Tensor velocity(const at::Tensor& x, const at::Tensor& t,
                        const Condition& c) const override {
      return base_->velocity(x, t, c) + by_;
    }

   private:
    std::shared_ptr<const VelocityField> base_;
    double by_;
  };
  WrapperBench moved;
  moved.policy.tuned = std::make_shared<Shifted>(b.problem.base, -0.3);
  EXPECT_LT(method.loss(moved.context(), batch, 8).loss.item<double>(), std::log(2.0) - 0.05);
  moved.policy.tuned = std::make_shared<Shifted>(b.problem.base, 0.3);
  EXPECT_GT(method.loss(moved.context(), batch, 8).loss.item<double>(), std::log(2.0) + 0.05);
  test::expect_error(ErrorKind::kConfig, "no pairs",
                     [&] { method.collect(b.context(), 0, 0, 7, false); });
  const auto refused = [&](const ParameterSet& content, const std::string& why) {
    write_safetensors(dir / "bad.safetensors", content, {});
    EndpointConfig bad;
    bad.noisings = 2;
    bad.pairs = (dir / "bad.safetensors").string();
    EndpointRegression other("dpo", bad);
    test::expect_error(ErrorKind::kBadFile, why,
                       [&] { other.collect(b.context(), 0, 0, 8, false); });
  };
  ParameterSet bad;
  bad.add("chosen", at::zeros({3, 2}));
  refused(bad, "no tensor 'rejected'");
  bad.add("rejected", at::zeros({2, 2}));
  refused(bad, "3 chosen samples, 2 rejected");
  config.pairs = (dir / "none.safetensors").string();
  test::expect_error(ErrorKind::kBadFile, "is not there",
                     [&] { EndpointRegression("dpo", config); });
  EndpointConfig few;
  few.advantage.group = 8;
  few.screening.candidates = 4;
  test::expect_error(ErrorKind::kConfig, "less than method.group",
                     [&] { EndpointRegression("ram", few); });
  ParameterSet shape;
  shape.add("chosen", at::zeros({3, 3}));
  shape.add("rejected", at::zeros({3, 3}));
  refused(shape, "shape");
}

FinetuneConfig step_task() {
  FinetuneConfig c;
  c.model.family = "gaussian-mixture";
  c.model.args = {{"means", "-0.8 0; 0.8 0"}, {"deviations", "0.6"}};
  RewardTerm reward;
  reward.name = "step";
  reward.scale = 1.5;
  reward.slope = {1, 0};
  reward.level = 0.5;
  c.reward = {reward};
  c.policy.kind = "control";
  c.policy.control.kind = "mlp";
  c.policy.control.width = 32;
  c.policy.control.depth = 2;
  c.method.adjoint = adjoint_matching_preset("exact", 20);
  c.sampler.steps = 20;
  c.batch = 64;
  c.item = 32;
  c.evaluation.every = 0;
  c.evaluation.base_samples = 64;
  c.train.steps = 150;
  c.train.optimizer.learning_rate = 5e-3;
  c.train.optimizer.final_fraction = 0.02;
  c.train.average_decay = 0.95;
  c.train.checkpoint_every = 100;
  c.surrogate.every = 5;
  c.surrogate.samples = 128;
  return c;
}

double share_above(const FinetuneSetup& setup, const VelocityField& field) {
  const RandomStreams streams(77);
  DrawOptions options;
  options.n = 4000;
  return (draw(field, setup.config.sampler, *setup.flow.path, {2}, streams, no_labels(), options)
              .x.select(1, 0) > 0.5)
      .to(at::kDouble)
      .mean()
      .item<double>();
}

// Adjoint Matching needs a gradient; a step has none. With the learned stand-in it comes most of
// the way to the tilted law of the step; without, it is refused.
TEST(train_surrogate, MakesAStepLearnable) {
  const test::TempDir dir;
  FinetuneConfig config = step_task();
  const FinetuneSetup setup = set_up(config);
  {
    tiltflow::Run run(dir / "run", "x", false);
    finetune(setup, run);
  }
  FlowModelConfig file;
  file.file = (dir / "run/model.safetensors").string();
  const double base = share_above(setup, *setup.flow.model);
  const double tuned = share_above(setup, *load_flow_model(file).model);
  const double wanted = base * std::exp(1.5) / (base * std::exp(1.5) + 1 - base);
  EXPECT_GT(wanted - base, 0.25);
  EXPECT_GT(tuned, base + 0.7 * (wanted - base)) << "base " << base << " wanted " << wanted;
  EXPECT_LT(tuned, wanted + 0.03);
  config.method.adjoint = adjoint_matching_preset("deterministic-control", 20);
  test::expect_error(ErrorKind::kConfig, "fitted to samples with noise", [&] { set_up(config); });
  config.method.adjoint = adjoint_matching_preset("exact", 20);
  config.surrogate.every = 0;
  test::expect_error(ErrorKind::kConfig, "needs the reward's gradient", [&] { set_up(config); });
}

// Codes are uniform whatever their number; an untrained classifier gives a bonus that depends on
// the code alone where its last layer is zero; its gradient is right; what it is fitted to it
// recognises.
TEST(train_modes, CodesAndBonus) {
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
  const at::Tensor g = torch::autograd::grad({modes.bonus(few, x_1, {}).sum()}, {x_1})[0];
  for (std::int64_t axis = 0; axis < 2; ++axis) {
    const at::Tensor step = at::zeros({3, 2});
    step.select(1, axis).fill_(1e-2);
    const at::Tensor difference =
        (modes.bonus(few, x_1.detach() + step, {}) - modes.bonus(few, x_1.detach() - step, {})) /
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

TEST(train_modes, WhatCannotWorkIsRefused) {
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

}  // namespace
}  // namespace tiltflow
