#include <cmath>

#include "tests/support.h"
#include "tiltflow/finetune/adjoint_matching.h"
#include "tiltflow/flow/time_grid.h"
#include "tiltflow/models/mlp/mlp.h"
#include "tiltflow/models/model_file.h"
#include "tiltflow/sampler/fields.h"
#include "tiltflow/sampler/ode.h"
#include "tiltflow/train/optimizer.h"
#include "tiltflow/verify/problems.h"

namespace tiltflow {
namespace {

// A 2-D problem with a side network that already does something.
struct Bench {
  ExactProblem problem = plane_modes(false);
  Policy policy;
  TransitionTable table;
  RandomStreams streams{3};
  LabelSource labels = no_labels();
  std::shared_ptr<CountingField> base, tuned;

  explicit Bench(const std::string& sampler = "auto", int steps = 12) {
    const MlpConfig shape{2, 16, 2, 4};
    ParameterSet weights;
    for (const auto& [name, tensor] : init_mlp(shape, RandomStreams(1))) {
      weights.add(name, tensor + 0.02);
    }
    policy = side_policy(problem.base, *make_mlp(shape, weights), make_path("linear"));
    base = std::make_shared<CountingField>(policy.base);
    tuned = std::make_shared<CountingField>(policy.tuned);
    policy.base = base;
    policy.tuned = tuned;
    SamplerConfig config;
    config.name = sampler;
    config.steps = steps;
    table = table_of(config, *problem.path);
  }
  FinetuneContext context() const {
    return {policy, *problem.reward, *problem.path, table, streams, labels, {2}};
  }
  double run(AdjointMatching& method, std::vector<at::Tensor>* gradients = nullptr,
             std::int64_t pieces = 1) {
    const at::AutoGradMode grad(true);
    method.begin_step(context(), 5, 0);
    double total = 0;
    const std::int64_t n = 12 / pieces;
    for (std::int64_t i = 0; i < pieces; ++i) {
      const LossReport report =
          method.loss(context(), method.collect(context(), 5, i * n, n, false), 12);
      total += report.loss.item<double>();
      const auto found = torch::autograd::grad({report.loss}, policy.trainable.tensors());
      if (gradients) {
        if (gradients->empty()) {
          *gradients = found;
        } else {
          for (std::size_t j = 0; j < found.size(); ++j) {
            (*gradients)[j] = (*gradients)[j] + found[j];
          }
        }
      }
    }
    return total;
  }
};

AdjointMatchingConfig exact(std::int64_t loss_steps) {
  AdjointMatchingConfig c = adjoint_matching_preset("exact", 12);
  c.loss_steps = loss_steps;
  return c;
}

}  // namespace

TEST(finetune_adjoint_matching, KeptGraphsAndRecomputedVelocitiesAgree) {
  Bench a, b;
  AdjointMatchingConfig kept = exact(5);
  AdjointMatchingConfig again = exact(5);
  again.keep_graphs = false;
  AdjointMatching first(kept), second(again);
  std::vector<at::Tensor> g, h;
  EXPECT_NEAR(a.run(first, &g), b.run(second, &h), 1e-4);
  for (std::size_t i = 0; i < g.size(); ++i) EXPECT_LT(test::relative_error(g[i], h[i]), 1e-4);
}

TEST(finetune_adjoint_matching, EvaluationsAreAtTheFloor) {
  // K for the rollout, 2 (K-1) for the adjoint, one base velocity at t = 0 for the control cost;
  // nothing for the loss.
  Bench kept, again;
  AdjointMatchingConfig config = exact(5);
  AdjointMatching first(config);
  kept.run(first);
  EXPECT_EQ(kept.tuned->count(), 12 * 12);
  EXPECT_EQ(kept.base->count(), 12 * (2 * 11 + 1));
  config.keep_graphs = false;
  AdjointMatching second(config);
  again.run(second);
  EXPECT_EQ(again.tuned->count(), 12 * (12 + 5));
  // Eleven steps in four groups: four products, and a forward alone where there is none.
  Bench coarse;
  config.adjoint_stride = 3;
  AdjointMatching third(config);
  coarse.run(third);
  EXPECT_EQ(coarse.base->count(), 12 * (2 * 4 + 8));
}

TEST(finetune_adjoint_matching, PiecesAddUpToTheWholeBatch) {
  Bench whole, split;
  AdjointMatching first(exact(0)), second(exact(0));
  std::vector<at::Tensor> g, h;
  EXPECT_NEAR(whole.run(first, &g, 1), split.run(second, &h, 4), 1e-3);
  for (std::size_t i = 0; i < g.size(); ++i) EXPECT_LT(test::relative_error(g[i], h[i]), 1e-4);
}

TEST(finetune_adjoint_matching, FirstStepRaisesTheReward) {
  // u = 0 at the start: the loss is |s a|^2, and a small step against its gradient must raise E r -
  // cost.
  const ExactProblem p = near_modes();
  const MlpConfig shape{1, 16, 2, 4};
  Policy policy =
      side_policy(p.base, *make_mlp(shape, init_mlp(shape, RandomStreams(1))), make_path("linear"));
  SamplerConfig sampler;
  const TransitionTable table = table_of(sampler, *p.path);
  const RandomStreams streams(3);
  const LabelSource labels = no_labels();
  const FinetuneContext context{policy, *p.reward, *p.path, table, streams, labels, {1}};
  AdjointMatching method(exact(0));
  const auto reward = [&] {
    DrawOptions options;
    options.n = 4000;
    options.chunk = 4000;
    return p.reward
        ->score(draw(*policy.tuned, sampler, *p.path, {1}, streams, labels, options).x, {})
        .mean()
        .item<double>();
  };
  const double before = reward();
  const at::AutoGradMode grad(true);
  method.begin_step(context, 0, 0);
  const LossReport report = method.loss(context, method.collect(context, 0, 0, 256, false), 256);
  const auto gradients =
      torch::autograd::grad({report.loss}, policy.trainable.tensors(), {}, false, false, true);
  for (std::size_t i = 0; i < gradients.size(); ++i) {
    if (gradients[i].defined()) policy.trainable.tensors()[i].detach().sub_(gradients[i], 0.05);
  }
  EXPECT_GT(reward(), before + 1e-3);  // same noise: a paired comparison
}

TEST(finetune_adjoint_matching, SubsetsFollowThePreset) {
  Bench bench("euler-paper", 40);
  AdjointMatching paper(adjoint_matching_preset("paper", 40));
  for (std::int64_t step = 0; step < 20; ++step) {
    paper.begin_step(bench.context(), step, 0);
    const auto& subset = paper.subset();
    ASSERT_EQ(subset.size(), 20u);
    for (std::int64_t k = 30; k < 40; ++k) {
      EXPECT_EQ(std::count(subset.begin(), subset.end(), k), 1)
          << "the last quarter is always there";
    }
    EXPECT_TRUE(std::is_sorted(subset.begin(), subset.end()));
    EXPECT_TRUE(std::adjacent_find(subset.begin(), subset.end()) == subset.end());
  }
  Bench sd("ancestral", 50);
  AdjointMatching official(adjoint_matching_preset("official-sd", 50));
  official.begin_step(sd.context(), 1, 0);
  ASSERT_EQ(official.subset().size(), 4u);
  EXPECT_LT(official.subset()[1], 30);
  EXPECT_GE(official.subset()[2], 30);
}

TEST(finetune_adjoint_matching, PresetsDifferAsTheyShould) {
  std::map<std::string, double> losses;
  for (const auto& [pairing, sampler] :
       {std::pair{"next", "euler-paper"}, {"same", "euler-paper"}, {"later", "euler-paper"}}) {
    Bench bench(sampler);
    AdjointMatchingConfig config = exact(0);
    config.pairing = pairing;
    AdjointMatching method(config);
    losses[pairing] = bench.run(method);
  }
  EXPECT_GT(std::abs(losses["next"] - losses["same"]), 1e-3);
  EXPECT_GT(std::abs(losses["next"] - losses["later"]), 1e-3);
  Bench plain("euler");
  AdjointMatchingConfig config = exact(0);
  config.pairing = "later";
  AdjointMatching method(config);
  test::expect_error(ErrorKind::kConfig, "euler-paper", [&] { plain.run(method); });
}

TEST(finetune_adjoint_matching, TimeWeightingChangesTheSumOnly) {
  Bench plain, weighted;
  AdjointMatchingConfig config = exact(0);
  AdjointMatching first(config);
  config.time_weighting = 0.5;
  AdjointMatching second(config);
  EXPECT_GT(std::abs(plain.run(first) - weighted.run(second)), 1e-3);
  // with one step in the grid the weight is 1, whatever the exponent
  Bench one("auto", 1), same("auto", 1);
  AdjointMatching third(exact(0)), fourth(config);
  EXPECT_NEAR(one.run(third), same.run(fourth), 1e-5);
}

// Every sample has its own times; four passes of three show each of the twelve once, so their mean
// is the full loss.
TEST(finetune_adjoint_matching, StratifiedTimesCoverTheGridEvenly) {
  Bench bench;
  AdjointMatchingConfig config = exact(0);
  config.keep_graphs = false;
  AdjointMatching full(config);
  config.times = "stratified";
  config.loss_steps = 3;
  AdjointMatching part(config);
  full.begin_step(bench.context(), 8, 0);
  part.begin_step(bench.context(), 8, 0);
  const Batch batch = part.collect(bench.context(), 8, 0, 24, true);
  const auto gradient = [&](const at::Tensor& loss) {
    return torch::autograd::grad({loss}, {bench.policy.trainable.tensors()[0]})[0];
  };
  const at::AutoGradMode grad(true);
  const LossReport whole = full.loss(bench.context(), batch, 24);
  double mean = 0;
  at::Tensor slope;
  for (int pass = 0; pass < 4; ++pass) {
    if (pass > 0) part.begin_step(bench.context(), 8 + pass, pass);
    LossReport report = part.loss(bench.context(), batch, 24);
    // 24 samples x 3 times over 12 steps: six samples at each time
    const MetricSums& m = report.metrics;
    EXPECT_EQ(m.weight_of("loss_t0.00"), 6) << "pass " << pass;
    EXPECT_EQ(m.weight_of("loss_t0.92"), 6) << "pass " << pass;
    mean += report.loss.item<double>() / 4;
    const at::Tensor g = gradient(report.loss) / 4;
    slope = slope.defined() ? slope + g : g;
  }
  EXPECT_NEAR(mean, whole.loss.item<double>(), 1e-4);
  EXPECT_LT(test::relative_error(slope, gradient(whole.loss)), 1e-4);
  config.late_fraction = 0.5;
  config.late_steps = 2;
  test::expect_error(ErrorKind::kConfig, "shared", [&] { AdjointMatching refused(config); });
}

// Under any control the weighted mean of the adjoint is its mean under p*: on a Gaussian with a
// linear reward, where the adjoint is the same on every path, weighting changes nothing; with a
// quadratic one the uncontrolled paths regress on -grad log E exp r (weighted) or -grad E r (as
// published), both known in closed form at the last step but one.
TEST(finetune_adjoint_matching, PathWeightsTurnTheMeanIntoTheTiltedMean) {
  const ExactProblem p = line_gaussian(true);
  const MlpConfig shape{1, 8, 1, 2};
  ParameterSet zero;
  for (const auto& [name, tensor] : init_mlp(shape, RandomStreams(1))) {
    zero.add(name, at::zeros_like(tensor));
  }
  const Policy policy =
      side_policy(p.base, *make_mlp(shape, zero), make_path("linear"));  // no control at all
  SamplerConfig sampler;
  sampler.steps = 4;
  const TransitionTable table = table_of(sampler, *p.path);
  const RandomStreams streams(7);
  const LabelSource labels = no_labels();
  const FinetuneContext context{policy, *p.reward, *p.path,    table,         streams,
                                labels, {1},       at::kFloat, p.target.log_z};
  AdjointMatchingConfig config = adjoint_matching_preset("exact", 4);
  config.keep_graphs = false;
  AdjointMatching method(config);
  method.begin_step(context, 0, 0);
  const std::int64_t n = 200000;
  const Batch batch = method.collect(context, 0, 0, n, true);
  // r = -w (x - c)^2 at X_4 = m + s xi: regress at fixed X_3 by averaging over a thin slice
  const Transition& last = table.steps[3];
  const at::Tensor x = batch.states[3].flatten().to(at::kDouble);
  const at::Tensor a = batch.targets[3].flatten().to(at::kDouble);
  const at::Tensor weight = (batch.log_weights - p.target.log_z).exp();
  EXPECT_NEAR(weight.mean().item<double>(), 1, 0.15)
      << "E exp(r) / Z, up to the discretisation of four steps";
  const at::Tensor slice = ((x - 0.5).abs() < 0.05).nonzero().flatten();
  ASSERT_GT(slice.size(0), 3000);
  const at::Tensor mine = a.index_select(0, slice);
  const at::Tensor w = weight.index_select(0, slice);
  const double plain = mine.mean().item<double>();
  const double weighted = ((mine * w).sum() / w.sum()).item<double>();
  // X_4 | X_3 is Gaussian with variance s^2; r has slope g at its mean and second derivative h: E
  // r' = g, tilted g / (1 - h s^2)
  const at::Tensor centre = at::full({1, 1}, 0.5);
  const at::Tensor m =
      centre * last.p + p.base->velocity(centre, time_tensor(last.t, centre), {}) * last.c;
  const double g = p.reward->score_and_gradient(m, {}).gradient.item<double>();
  const double h = p.reward->score_and_gradient(m + 1, {}).gradient.item<double>() - g;
  const double se = mine.std().item<double>() / std::sqrt(static_cast<double>(slice.size(0)));
  EXPECT_NEAR(plain, -g, 5 * se + 0.003);
  EXPECT_NEAR(weighted, -g / (1 - h * last.s * last.s), 5 * se + 0.003);
  EXPECT_GT(std::abs(plain - weighted), 5 * se) << "or the comparison says nothing";
}

TEST(finetune_adjoint_matching, ClippingDropsGradientsAndIsCounted) {
  Bench bench;
  AdjointMatchingConfig config = exact(0);
  config.clip_constant = 1e-9;  // everything is above
  AdjointMatching method(config);
  std::vector<at::Tensor> g;
  EXPECT_EQ(bench.run(method, &g), 0);
  for (const at::Tensor& gradient : g) EXPECT_EQ(gradient.abs().max().item<double>(), 0);

  config.clip_constant = 0;
  config.clip_quantile = 0.5;
  for (const bool per_time : {true, false}) {
    config.clip_per_time = per_time;
    AdjointMatching quantile(config);
    Bench again;
    const double first = again.run(quantile);  // the first batch only sets the thresholds
    std::map<std::string, double> metrics{
        {"reward", 0}, {"reward_square", 0}, {"weight", 1}, {"weight_square", 1}};
    quantile.end_step(metrics);
    EXPECT_LT(again.run(quantile), first);
    // The same batch again: the half above its median is clipped.
    const at::AutoGradMode grad(true);
    const LossReport report =
        quantile.loss(again.context(), quantile.collect(again.context(), 5, 0, 12, false), 12);
    EXPECT_NEAR(report.metrics.averages().at("clip_rate"), 0.5, 1e-12);
    // the state that a resume needs is complete
    AdjointMatching copy(config);
    copy.restore(quantile.state());
    Bench other;
    EXPECT_EQ(other.run(copy), again.run(quantile));
  }
}

TEST(finetune_adjoint_matching, NoiselessTerminalAndSmoothing) {
  Bench bench;
  AdjointMatchingConfig config = exact(0);
  AdjointMatching last(config);
  const double reference = bench.run(last);
  config.terminal = "noiseless";
  AdjointMatching noiseless(config);
  EXPECT_NEAR(bench.run(noiseless), reference, 1e-3)
      << "a linear reward has the same gradient everywhere";
  config.terminal = "last";
  config.smoothing = 3;
  AdjointMatching smoothed(config);
  EXPECT_NEAR(bench.run(smoothed), reference, 1e-3);
}

// Deterministic control of a Gaussian flow with a linear reward: the adjoint does not depend on the
// state, so the optimal shift follows from two scalar recursions; trained on all steps it is
// reached, and it is not the shift of the tilted law. With the last three steps alone nothing
// before them is evaluated.
TEST(finetune_adjoint_matching, DeterministicControlReachesItsOwnOptimum) {
  const ExactProblem p = line_gaussian(false);
  const std::vector<double> grid = uniform_grid(20);
  const TransitionTable table = deterministic_control(grid);
  const at::Tensor at_zero = at::zeros({1, 1}, at::kDouble);
  const at::Tensor one = at::ones({1, 1}, at::kDouble);
  std::vector<double> factor(20), a(21);
  a[20] = -1.5;
  for (std::size_t k = 20; k-- > 0;) {
    factor[k] = 1 + 0.05 * p.base->vjp(at_zero, time_tensor(grid[k], at_zero), {}, one)
                               .input_gradient.item<double>();
    a[k] = factor[k] * a[k + 1];
  }
  double best = 0;
  for (std::size_t k = 0; k < 20; ++k) best = factor[k] * best - 0.05 * a[k + 1];

  AdjointMatchingConfig config = adjoint_matching_preset("deterministic-control", 20);
  EXPECT_EQ(config.loss_steps, 3);
  config.loss_steps = config.late_steps = 0;
  config.late_fraction = 0;
  const MlpConfig shape{1, 32, 2, 6};
  const Policy policy =
      side_policy(p.base, *make_mlp(shape, init_mlp(shape, RandomStreams(1))), p.path);
  AdjointMatching method(config);
  const RandomStreams streams(3);
  const LabelSource labels = no_labels();
  const FinetuneContext context{policy, *p.reward, *p.path, table, streams, labels, {1}};
  OptimizerConfig optimizer_config;
  optimizer_config.learning_rate = 5e-3;
  optimizer_config.final_fraction = 0.01;
  AdamW optimizer(optimizer_config, policy.trainable);
  for (std::int64_t i = 0; i < 300; ++i) {
    const at::AutoGradMode grad(true);
    method.begin_step(context, i, 0);
    const LossReport report = method.loss(context, method.collect(context, i, 0, 64, false), 64);
    optimizer.step(torch::autograd::grad({report.loss}, policy.trainable.tensors()),
                   optimizer_config.learning_rate * schedule_factor(optimizer_config, i, 300));
  }
  const at::Tensor x = prior_sample(RandomStreams(9), 0, 0, 500, {1}, at::kDouble);
  const OdeOptions euler{OdeMethod::kEuler};
  const double shift =
      (solve_ode(*policy.tuned, x, grid, {}, euler).x - solve_ode(*p.base, x, grid, {}, euler).x)
          .mean()
          .item<double>();
  EXPECT_NEAR(shift / best, 1, 0.03);
  EXPECT_GT(std::abs(best - 0.735), 0.1) << "the tilted law's shift is 0.735";

  Policy counted = policy;
  const auto base = std::make_shared<CountingField>(policy.base);
  counted.base = base;
  const FinetuneContext counting{counted, *p.reward, *p.path, table, streams, labels, {1}};
  AdjointMatching late(adjoint_matching_preset("deterministic-control", 20));
  late.begin_step(counting, 0, 0);
  late.collect(counting, 0, 0, 10, false);
  EXPECT_EQ(base->count(), 10 * (2 * 2 + 1))
      << "two vector-Jacobian products and one velocity for three steps";
}

TEST(finetune_adjoint_matching, NoiselessStepsAreRefused) {
  Bench bench;
  bench.table = ddim(*bench.problem.path, {0, 0.5, 1}, 1, FinalStep::kClean);
  AdjointMatching method(exact(0));
  test::expect_error(ErrorKind::kConfig, "noiseless step", [&] { bench.run(method); });
}

// Gradient of the loss against finite differences of the loss with the batch held fixed.
TEST(finetune_adjoint_matching, GradientAgainstFiniteDifferences) {
  const auto tuned = load_velocity_model(test::golden("sit_a_model.safetensors"),
                                         {{"num_heads", "4"}}, {}, at::kDouble);
  const auto base = load_velocity_model(test::golden("sit_a_ema.safetensors"), {{"num_heads", "4"}},
                                        {}, at::kDouble);
  Policy policy = full_policy(*tuned.model);
  policy.base =
      std::shared_ptr<const VelocityField>(base.model->rebind(base.model->parameters(), {}));
  RewardTerm term;
  term.name = "quadratic";
  term.center = {0.2};
  term.scale = 0.1;
  const StateReward reward(make_weighted_sum({term}), identity_decoder());
  const auto path = make_path("linear");
  SamplerConfig sampler;
  sampler.steps = 5;
  const TransitionTable table = table_of(sampler, *path);
  const RandomStreams streams(3);
  const LabelSource labels = fixed_label(2);
  const FinetuneContext context{policy,  reward, *path,     table,
                                streams, labels, {4, 8, 8}, at::kDouble};
  AdjointMatchingConfig config = adjoint_matching_preset("exact", 5);
  config.keep_graphs = false;
  AdjointMatching method(config);
  method.begin_step(context, 0, 0);
  const Batch batch = method.collect(context, 0, 0, 2, true);
  const at::AutoGradMode grad(true);
  const at::Tensor weight = policy.trainable.at("blocks.1.mlp.fc2.bias");
  const at::Tensor gradient =
      torch::autograd::grad({method.loss(context, batch, 2).loss}, {weight})[0];
  for (const std::int64_t i : {0, 7, 33}) {
    const auto loss_at = [&](double offset) {
      const at::NoGradGuard no_grad;
      weight.detach()[i].add_(offset);
      const double value = method.loss(context, batch, 2).loss.item<double>();
      weight.detach()[i].sub_(offset);
      return value;
    };
    const double h = 1e-5;
    const double numeric = (loss_at(h) - loss_at(-h)) / (2 * h);
    EXPECT_NEAR(gradient[i].item<double>(), numeric, 1e-6 * (1 + std::abs(numeric)));
  }
}

}  // namespace tiltflow
