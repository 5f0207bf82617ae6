// SOC matching, weights of paths, other dynamics, replay, and what is new in the policy gradients.
#include <cmath>
#include <set>

#include "tests/support.h"
#include "tiltflow/finetune/path_weights.h"
#include "tiltflow/models/mixture/mixture_model.h"
#include "tiltflow/models/mlp/mlp.h"
#include "tiltflow/sampler/fields.h"
#include "tiltflow/tensor/statistics.h"
#include "tiltflow/verify/control_problems.h"

namespace tiltflow {
namespace {

const RandomStreams kSocStreams(5);

// The drift with `factor` times the exact control.
class Controlled final : public VelocityField {
 public:
  Controlled(const ControlProblem& problem, double factor) : problem_(problem), factor_(factor) {}
  at::Tensor velocity(const at::Tensor& x, const at::Tensor& t, const Condition& c) const override {
    const at::Tensor base = problem_.drift->velocity(x, t, c);
    const auto steps = static_cast<double>(problem_.table.steps.size() - 1);
    const auto k = static_cast<std::size_t>(std::llround(t[0].item<double>() * steps)) + 1;
    return base + (problem_.optimal_shift(k, x) * (factor_ / problem_.table.steps[k].c))
                      .to(x.scalar_type());
  }

 private:
  const ControlProblem& problem_;
  double factor_;
};

Batch collect(FinetuneMethod& method, const ControlProblem& problem, double factor, std::int64_t n,
              std::int64_t step = 0) {
  Policy policy;
  policy.base = problem.drift;
  policy.tuned = std::make_shared<Controlled>(problem, factor);
  const auto path = make_path("linear");
  const LabelSource labels = no_labels();
  const FinetuneContext context{policy, *problem.reward,     *path,      problem.table, kSocStreams,
                                labels, {problem.dimension}, at::kDouble};
  const at::NoGradGuard no_grad;
  method.begin_step(context, step, 0);
  return method.collect(context, step, 0, n, false);
}

double net_reward(const ControlProblem& problem, double factor, std::int64_t n) {
  SocMatching method("socm-adjoint", {});
  const Batch batch = collect(method, problem, factor, n);
  return (batch.rewards.to(at::kDouble) - batch.control_cost.to(at::kDouble)).mean().item<double>();
}

TEST(finetune_control, ExactControlsAreOptimal) {
  for (const ControlProblem& p :
       {ornstein_uhlenbeck(false, 25), ornstein_uhlenbeck(true, 25), double_well(50)}) {
    const double best = net_reward(p, 1, 2000);
    for (const double factor : {0.0, 0.7, 1.3}) {
      EXPECT_GT(best, net_reward(p, factor, 2000)) << p.name << " " << factor;  // the same noise
    }
  }
}

TEST(finetune_control, GradientForTheNetworkIsTheRewards) {
  const ControlProblem p = double_well(100);
  const at::Tensor x = kSocStreams.normal(Purpose::kProbe, 0, 0, 0, 8, {p.dimension}, at::kDouble);
  EXPECT_TRUE(at::allclose(p.reward_gradient(x), p.reward->score_and_gradient(x, {}).gradient,
                           1e-12, 1e-12));
}

// E*[g_k] is the optimal shift over s^2 whatever the matrices; under the base's own paths it is
// not. The lean adjoint has no variance here.
TEST(finetune_soc, TargetsHaveTheRightMeanWhateverTheMatrices) {
  const ControlProblem p = ornstein_uhlenbeck(false, 10);
  const auto wanted = [&](std::size_t k) {
    return p.optimal_shift(k, at::zeros({1, p.dimension}, at::kDouble))[0] /
           (p.table.steps[k].s * p.table.steps[k].s);
  };
  const auto deviation = [&](const Batch& b, std::size_t k) {
    return (b.targets[k].mean(0) - wanted(k))
        .abs()
        .div(b.targets[k].std(0) / std::sqrt(static_cast<double>(b.n)))
        .max()
        .item<double>();
  };
  for (const auto& [matrices, gamma] :
       {std::pair{"constant", 0.0}, {"exponential", 0.5}, {"exponential", 4.0}}) {
    SocMatchingConfig c;
    c.matrices = matrices;
    c.gamma = gamma;
    SocMatching method("socm", c);
    const Batch optimal = collect(method, p, 1, 20000);
    const Batch base = collect(method, p, 0, 20000);
    for (const std::size_t k : {1U, 5U, 9U}) {
      EXPECT_LT(deviation(optimal, k), 4.5) << matrices << " " << gamma << " step " << k;
    }
    EXPECT_GT(deviation(base, 1), 6) << matrices << " " << gamma;
  }
  SocMatching adjoint("socm-adjoint", {});
  const Batch exact = collect(adjoint, p, 1, 4);
  for (std::size_t k = 1; k < p.table.steps.size(); ++k) {
    EXPECT_TRUE(at::allclose(exact.targets[k], wanted(k).expand_as(exact.targets[k]), 1e-9, 1e-10))
        << k;
  }
}

TEST(finetune_soc, LearnedMatricesHaveLessVariance) {
  const ControlProblem p = ornstein_uhlenbeck(true, 10);
  SocMatchingConfig c;
  c.matrices = "constant";
  SocMatching constant("socm", c);
  c.matrices = "learned";
  c.memory = 0.5;
  SocMatching learned("socm", c);
  std::map<std::string, double> metrics{{"reward", 0}, {"reward_square", 0}};
  const auto spread = [](const Batch& b) { return b.targets[2].var(0).sum().item<double>(); };
  const double before = spread(collect(learned, p, 1, 4000));
  learned.end_step(metrics);
  for (std::int64_t step = 1; step < 4; ++step) {
    collect(learned, p, 1, 4000, step);
    metrics = {{"reward", 0}, {"reward_square", 0}};
    learned.end_step(metrics);
  }
  const double after = spread(collect(learned, p, 1, 4000, 9));
  EXPECT_LT(after, 0.9 * before);
  EXPECT_LT(after, 0.9 * spread(collect(constant, p, 1, 4000, 9)));
  // What is stored brings the same matrices back.
  SocMatching restored("socm", c);
  metrics = {{"reward", 0}, {"reward_square", 0}};
  learned.end_step(metrics);
  restored.restore(learned.state());
  collect(restored, p, 1, 8, 10);
  EXPECT_TRUE(at::allclose(restored.matrices(), learned.matrices(), 1e-9, 1e-9));
}

TEST(finetune_weights, TemperedToTheBudget) {
  const at::Tensor logs = kSocStreams.normal(Purpose::kProbe, 0, 0, 0, 64, {}, at::kDouble) * 3;
  const auto divergence = [](const at::Tensor& w) {
    return (w * (w * static_cast<double>(w.size(0))).log()).sum().item<double>();
  };
  const PathWeights free = path_weights(logs, 0);
  const PathWeights tight = path_weights(logs, 0.2);
  const PathWeights loose = path_weights(logs, 10);
  EXPECT_EQ(free.tau, 1);
  EXPECT_EQ(loose.tau, 1);
  EXPECT_GT(divergence(free.weights), 0.5);
  EXPECT_NEAR(divergence(tight.weights), 0.2, 1e-9);
  EXPECT_NEAR(tight.weights.sum().item<double>(), 1, 1e-12);
  EXPECT_TRUE(at::allclose(tight.weights, at::softmax(logs * tight.tau, 0)));
  EXPECT_NEAR(divergence(path_weights(at::zeros({8}, at::kDouble), 0.1).weights), 0, 1e-12);
}

TEST(finetune_weights, TrustRegionsActInEveryMethodThatHasThem) {
  const ControlProblem p = ornstein_uhlenbeck(false, 10);
  const auto path = make_path("linear");
  const LabelSource labels = no_labels();
  Policy policy;
  policy.base = policy.tuned = p.drift;
  const FinetuneContext context{policy,      *p.reward, *path,         p.table,
                                kSocStreams, labels,    {p.dimension}, at::kDouble};
  const auto tempered = [&](FinetuneMethod& method) {
    const at::NoGradGuard no_grad;
    method.begin_step(context, 0, 0);
    return method.loss(context, method.collect(context, 0, 0, 32, false), 32)
        .metrics.averages()
        .at("tempered");
  };
  for (const double budget : {0.0, 0.05}) {
    SocMatchingConfig soc;
    soc.trust_region = budget;
    PathLossConfig losses;
    losses.trust_region = budget;
    EndpointConfig rwr;
    rwr.trust_region = budget;
    SocMatching matching("socm", soc), adjoint("socm-adjoint", soc);
    PathLoss entropy("cross-entropy", losses);
    EndpointRegression regression("rwr", rwr);
    for (FinetuneMethod* method :
         std::initializer_list<FinetuneMethod*>{&matching, &adjoint, &entropy, &regression}) {
      EXPECT_EQ(tempered(*method), budget > 0 ? 1 : 0) << method->name();
    }
  }
}

// On a grid refined fourfold, twice, the two pairings' gradients come together.
TEST(finetune_direct, ContinuousAdjointBecomesTheDiscreteOne) {
  const ExactProblem problem = plane_modes(false);
  ParameterSet weights;
  for (const auto& [name, tensor] : init_mlp({2, 16, 2, 4}, RandomStreams(1))) {
    weights.add(name, (tensor + 0.02).to(at::kDouble));
  }
  const Policy policy =
      side_policy(problem.base, *make_mlp({2, 16, 2, 4}, weights), make_path("linear"));
  const LabelSource labels = no_labels();
  std::vector<double> difference;
  for (const int steps : {6, 24, 96}) {
    SamplerConfig sampler;
    sampler.steps = steps;
    const TransitionTable table = table_of(sampler, *problem.path);
    const FinetuneContext context{policy,      *problem.reward, *problem.path, table,
                                  kSocStreams, labels,          {2},           at::kDouble};
    std::vector<at::Tensor> flat;
    for (const bool continuous : {false, true}) {
      const at::AutoGradMode grad(true);
      BasicAdjointMatching method(continuous);
      const at::Tensor loss =
          method.loss(context, method.collect(context, 0, 0, 2000, false), 2000).loss;
      std::vector<at::Tensor> parts;
      for (const at::Tensor& g : torch::autograd::grad({loss}, policy.trainable.tensors())) {
        parts.push_back(g.flatten());
      }
      flat.push_back(at::cat(parts));
    }
    difference.push_back(((flat[1] - flat[0]).norm() / flat[0].norm()).item<double>());
  }
  EXPECT_GT(difference[0], 0.02);
  EXPECT_LT(difference[1], 0.6 * difference[0]);
  EXPECT_LT(difference[2], 0.6 * difference[1]);
}

// Velocities that are a leaf: the gradient of a loss in them is dL/dv itself.
class Leaf final : public VelocityField {
 public:
  mutable at::Tensor v;
  at::Tensor velocity(const at::Tensor& x, const at::Tensor&, const Condition&) const override {
    return v.defined() && v.sizes() == x.sizes() ? v : x * -0.3;
  }
};

struct LeafBench {
  ExactProblem problem = plane_modes(false);
  std::shared_ptr<Leaf> leaf = std::make_shared<Leaf>();
  Policy policy;
  TransitionTable table;
  LabelSource labels = no_labels();
  LeafBench() {
    policy.base = problem.base;
    policy.tuned = leaf;
    SamplerConfig sampler;
    sampler.steps = 5;
    table = table_of(sampler, *problem.path);
  }
  FinetuneContext context() const {
    return {policy, *problem.reward, *problem.path, table, kSocStreams, labels, {2}, at::kDouble};
  }
};

TEST(finetune_policy_gradient, GuardPullsAlikeAtEveryStep) {
  LeafBench b;
  PolicyGradientConfig c;
  c.advantage = {4, "centred", 0};
  c.clip = 0.1;
  c.kl = 0;
  c.density = "sum";
  PolicyGradient guard(c, /*guard=*/true);
  guard.begin_step(b.context(), 0, 0);
  const Batch batch = guard.collect(b.context(), 0, 0, 8, true);
  b.leaf->v = at::cat(batch.tuned_velocities).requires_grad_(true);
  const at::AutoGradMode grad(true);
  const at::Tensor g =
      torch::autograd::grad({guard.loss(b.context(), batch, 8).loss}, {b.leaf->v})[0].view(
          {5, 8, 2});
  for (std::size_t k = 0; k < 5; ++k) {  // ratio 1: -A xi, the same at every step
    EXPECT_TRUE(at::allclose(g[static_cast<std::int64_t>(k)],
                             -batch.advantages.unsqueeze(1).to(at::kDouble) * batch.noises[k] / 40,
                             1e-6, 1e-9))
        << k;
  }
  // Far along the gradient, log-ratios of +-2 with the sign of the advantage, every ratio is
  // clipped.
  std::vector<at::Tensor> moved;
  for (std::size_t k = 0; k < 5; ++k) {
    const at::Tensor& xi = batch.noises[k];
    const at::Tensor sign = batch.advantages.sign().unsqueeze(1).to(at::kDouble);
    moved.push_back(batch.tuned_velocities[k] +
                    sign * xi * (2 / b.table.steps[k].c) / xi.square().sum(1, true));
  }
  b.leaf->v = at::cat(moved).requires_grad_(true);
  const at::Tensor far =
      torch::autograd::grad({guard.loss(b.context(), batch, 8).loss}, {b.leaf->v})[0];
  EXPECT_LT(far.abs().max().item<double>(), 1e-12);
}

TEST(finetune_endpoint, AdvantageWeightedMatchingStartsAsWeightedFlowMatching) {
  LeafBench b;
  EndpointConfig c;
  c.advantage = {4, "centred", 0};
  c.preserve = 0.3;
  c.noisings = 2;
  c.clip = 0.1;
  EndpointRegression method("advantage-weighted-matching", c);
  const Batch batch = method.collect(b.context(), 0, 0, 8, true);
  b.leaf->v = at::cat(batch.tuned_velocities).requires_grad_(true);
  const at::AutoGradMode grad(true);
  const at::Tensor g =
      torch::autograd::grad({method.loss(b.context(), batch, 8).loss}, {b.leaf->v})[0].view(
          {2, 8, 2});
  for (std::size_t j = 0; j < 2; ++j) {
    const at::Tensor a = batch.advantages.unsqueeze(1).to(at::kDouble);
    const at::Tensor& v = batch.tuned_velocities[j];
    const at::Tensor wanted =
        (a * (v - batch.targets[j]) + c.preserve * (v - batch.base_velocities[j])) /
        16;  // 2/2 entries, 16 noised points
    EXPECT_TRUE(at::allclose(g[static_cast<std::int64_t>(j)], wanted, 1e-6, 1e-9));
  }
}

TEST(finetune_advantages, PairwiseWinsAreBounded) {
  const at::Tensor a = advantages(at::tensor({0.0, 1.0, 1e6}, at::kDouble), {3, "pairwise", 0});
  const double s = 1 / (1 + std::exp(-1.0));
  EXPECT_TRUE(at::allclose(a, at::tensor({1 - s - 1, s - 1, 1.0}, at::kDouble), 1e-9, 1e-9)) << a;
  EXPECT_NEAR(a.sum().item<double>(), 0, 1e-9);
}

TEST(finetune_direct, AlignPropDrawsItsWindow) {
  LeafBench b;
  EXPECT_EQ(DirectGradient("alignprop", {}).training_calls(b.table), 3);
  DirectGradient method("alignprop", {});
  std::set<std::size_t> windows;
  for (std::int64_t step = 0; step < 40; ++step) {
    method.begin_step(b.context(), step, 0);
    windows.insert(method.collect(b.context(), 0, 0, 2, false).noises.size());
  }
  EXPECT_EQ(windows, (std::set<std::size_t>{1, 2, 3, 4, 5}));
}

TEST(finetune_reciprocal, BufferServesManyStepsAndOtherBasesAreRefused) {
  LeafBench b;
  ReciprocalConfig c;
  c.replay.refresh = 3;
  c.replay.replay = 2;
  ReciprocalAdjointMatching method(c);
  test::expect_error(ErrorKind::kConfig, "standard normal base",
                     [&] { method.begin_step(b.context(), 0, 0); });
  b.policy.base =
      std::make_shared<MixtureModel>(mixture_from_args({{"means", "0 0"}}), make_path("linear"));
  const auto counted = std::make_shared<CountingField>(b.leaf);
  b.policy.tuned = counted;
  std::vector<std::int64_t> calls;
  for (std::int64_t step = 0; step < 7; ++step) {
    counted->reset();
    method.begin_step(b.context(), step, 0);
    const Batch batch = method.collect(b.context(), step, 0, 8, false);
    EXPECT_EQ(batch.states.size(), 4U);
    calls.push_back(counted->count());
  }
  EXPECT_EQ(calls, (std::vector<std::int64_t>{40, 0, 0, 40, 0, 0, 40}));
  EXPECT_EQ(method.state().at("0.0").size(0), 16);  // two rollouts are kept
  c.gradient_cap = 1e-3;
  ReciprocalAdjointMatching capped(c);
  capped.begin_step(b.context(), 0, 0);
  capped.collect(b.context(), 0, 0, 8, false);
  EXPECT_LE(capped.state().at("0.1").norm(2, 1).max().item<double>(), 1e-3 * (1 + 1e-9));
}

}  // namespace
}  // namespace tiltflow
