#include "tiltflow/finetune/methods.h"

#include <cmath>
#include <set>

#include "tests/support.h"
#include "tiltflow/models/mlp/mlp.h"
#include "tiltflow/sampler/sample.h"
#include "tiltflow/tensor/statistics.h"
#include "tiltflow/verify/problems.h"

namespace tiltflow {
namespace {

const RandomStreams kMethodStreams(3);

// Velocities that are a leaf: the gradient of a loss in them is dL/dv itself.
class LeafField final : public VelocityField {
 public:
  mutable at::Tensor v;
  at::Tensor velocity(const at::Tensor& x, const at::Tensor&, const Condition&) const override {
    if (!v.defined() || v.sizes() != x.sizes()) return at::zeros_like(x);
    return v;
  }
};

// 2-D modes, a side network that already does something, everything in `dtype`.
struct MethodBench {
  ExactProblem problem = plane_modes(false);
  Policy policy;
  TransitionTable table;
  LabelSource labels = no_labels();
  at::ScalarType dtype;
  explicit MethodBench(at::ScalarType type = at::kFloat, int steps = 6) : dtype(type) {
    ParameterSet weights;
    for (const auto& [name, tensor] : init_mlp({2, 16, 2, 4}, RandomStreams(1))) {
      weights.add(name, (tensor + 0.02).to(type));
    }
    policy = side_policy(problem.base, *make_mlp({2, 16, 2, 4}, weights), make_path("linear"));
    SamplerConfig config;
    config.steps = steps;
    table = table_of(config, *problem.path);
  }
  FinetuneContext context() const {
    return {policy, *problem.reward, *problem.path, table, kMethodStreams, labels, {2}, dtype};
  }
  at::Tensor loss(FinetuneMethod& method, std::int64_t n = 8, std::int64_t step = 4) const {
    const at::AutoGradMode grad(true);
    method.begin_step(context(), step, 0);
    return method.loss(context(), method.collect(context(), step, 0, n, false), n).loss;
  }
  std::vector<at::Tensor> gradient(FinetuneMethod& method, std::int64_t n = 8,
                                   std::int64_t step = 4) const {
    return torch::autograd::grad({loss(method, n, step)}, policy.trainable.tensors());
  }
};

double dot(const std::vector<at::Tensor>& a, const std::vector<at::Tensor>& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += (a[i] * b[i]).sum().item<double>();
  return sum;
}

TEST(finetune_advantages, KindsGroupsAndLabels) {
  const at::Tensor r = at::tensor({1.0, 3.0, 2.0, 10.0, 10.0, 16.0}, at::kDouble);
  const auto of = [&](const char* kind, double clip = 0) { return advantages(r, {3, kind, clip}); };
  EXPECT_TRUE(at::allclose(of("value"), r));
  EXPECT_TRUE(
      at::allclose(of("centred"), at::tensor({-1.0, 1.0, 0.0, -2.0, -2.0, 4.0}, at::kDouble)));
  EXPECT_NEAR(of("group").view({2, 3}).var(1, false)[1].item<double>(), 1, 1e-3);
  EXPECT_NEAR(of("batch").square().mean().item<double>(), 1, 1e-3);
  EXPECT_TRUE(at::allclose(of("rank").narrow(0, 0, 3),
                           at::tensor({-std::sqrt(1.5), std::sqrt(1.5), 0.0}, at::kDouble)))
      << of("rank");
  EXPECT_EQ(of("centred", 2).max().item<double>(), 2);
  test::expect_error(ErrorKind::kConfig, "no multiple",
                     [&] { advantages(r.narrow(0, 0, 4), {3, "group", 5}); });
  const LabelSource labels = grouped(listed_labels({5, 6, 7}), 2);
  EXPECT_TRUE(at::equal(labels(0, 6), at::tensor({5, 5, 6, 6, 7, 7}, at::kLong)));
  EXPECT_TRUE(at::equal(labels(2, 3), at::tensor({6, 6, 7}, at::kLong)));
}

// Every endpoint loss is quadratic in v, sample by sample: at its closed-form minimiser the
// gradient is zero, elsewhere it is not.
TEST(finetune_endpoint, MinimisersAreTheDocumentedOnes) {
  const MethodBench b;
  for (const std::string& name :
       {std::string("diffusion-nft"), std::string("advantage-flow"), std::string("ram")}) {
    EndpointConfig c;
    c.advantage = {4, "group", 1};
    c.strength = 0.5;
    c.gamma = 1.2;
    c.noisings = 2;
    c.preserve = name == "advantage-flow" ? 0.3 : 0;
    EndpointRegression method(name, c);
    Policy policy = b.policy;
    const Batch batch = method.collect(b.context(), 0, 0, 8, true);
    const auto leaf = std::make_shared<LeafField>();
    policy.tuned = leaf;
    const FinetuneContext context{
        policy, *b.problem.reward, *b.problem.path, b.table, kMethodStreams, b.labels, {2}};
    const at::Tensor a = batch.advantages.unsqueeze(1);
    std::vector<at::Tensor> wanted;
    for (std::size_t j = 0; j < 2; ++j) {
      const at::Tensor& y = batch.targets[j];
      const at::Tensor& old = batch.tuned_velocities[j];
      if (name == "diffusion-nft") {
        wanted.push_back(old + a * (y - old) / c.strength);  // 2 r - 1 = A with clip 1
      } else if (name == "advantage-flow") {
        wanted.push_back((a * y + c.gamma * old + c.preserve * batch.base_velocities[j]) /
                         (a + c.gamma + c.preserve));
      } else {
        wanted.push_back(batch.base_velocities[j] + c.strength * a * (y - old));
      }
    }
    for (const bool moved : {false, true}) {
      const at::AutoGradMode grad(true);
      leaf->v =
          (at::cat(wanted) + (moved ? 0.1 : 0)).to(at::kFloat).detach().set_requires_grad(true);
      const double size = torch::autograd::grad({method.loss(context, batch, 8).loss}, {leaf->v})[0]
                              .abs()
                              .max()
                              .item<double>();
      if (moved) {
        EXPECT_GT(size, 1e-3) << name;
      } else {
        EXPECT_LT(size, 1e-6) << name;
      }
    }
  }
}

TEST(finetune_endpoint, PreferencesAndWeights) {
  const MethodBench b;
  EndpointConfig c;
  c.advantage.group = 4;
  c.noisings = 1;
  c.beta = 3;
  EndpointRegression dpo("dpo", c);
  const Batch batch = dpo.collect(b.context(), 0, 0, 8, false);
  EXPECT_TRUE(at::equal(batch.times[0].narrow(0, 0, 4),
                        batch.times[0][0].expand({4})));  // one time in a group
  Policy policy = b.policy;
  const auto leaf = std::make_shared<LeafField>();
  policy.tuned = leaf;
  const FinetuneContext context{
      policy, *b.problem.reward, *b.problem.path, b.table, kMethodStreams, b.labels, {2}};
  const at::AutoGradMode grad(true);
  leaf->v = batch.base_velocities[0].to(at::kFloat).clone().set_requires_grad(true);
  const at::Tensor loss = dpo.loss(context, batch, 8).loss;
  const at::Tensor g = torch::autograd::grad({loss}, {leaf->v})[0];
  EXPECT_NEAR(loss.item<double>(), std::log(2.0), 1e-5);  // the start is the reference
  const at::Tensor towards = (g * (batch.targets[0] - leaf->v.detach())).sum(1).view({2, 4});
  const at::Tensor r = batch.rewards.view({2, 4});
  EXPECT_LT(towards.gather(1, r.argmax(1, true)).max().item<double>(),
            0);  // downhill is towards the best ...
  EXPECT_GT(towards.gather(1, r.argmin(1, true)).min().item<double>(),
            0);  // ... and away from the worst
  EXPECT_EQ((g.abs().sum(1) > 0).sum().item<std::int64_t>(), 4);
  EndpointConfig w;
  w.noisings = 1;
  w.tau = 2;
  EndpointRegression rwr("rwr", w);
  const Batch weighted = rwr.collect(b.context(), 0, 0, 8, false);
  leaf->v = at::zeros({8, 2}).set_requires_grad(true);
  const at::Tensor expected =
      (at::softmax(2 * weighted.rewards.to(at::kDouble), 0) * weighted.targets[0].square().mean(1))
          .sum();
  EXPECT_NEAR(rwr.loss(context, weighted, 8).loss.item<double>(), expected.item<double>(), 1e-5);
  // End points of the base have a known normaliser: how a batch is cut does not change the loss.
  // Where it is unknown it does.
  const auto halves_less_whole = [&](const std::string& rollouts) {
    EndpointConfig c;
    c.noisings = 1;
    c.rollouts = rollouts;
    EndpointRegression regression("rwr", c);
    const auto piece = [&](std::int64_t first, std::int64_t n) {
      const Batch batch = regression.collect(b.context(), 0, first, n, false);
      leaf->v = at::zeros({n, 2});
      return regression.loss(context, batch, 8).loss.item<double>();
    };
    return std::abs(piece(0, 4) + piece(4, 4) - piece(0, 8));
  };
  EXPECT_LT(halves_less_whole("base"), 1e-5);
  EXPECT_GT(halves_less_whole("policy"), 1e-3);
  test::expect_error(ErrorKind::kConfig, "exceed 1", [] {
    EndpointConfig e;
    e.gamma = 0.9;
    EndpointRegression("advantage-flow", e);
  });
}

// However many tie for the best (all of them in a group without a winner), a group has the weight
// of one winner; a group of equal rewards has no preference.
TEST(finetune_endpoint, TiesShareOneWeight) {
  const MethodBench b;
  const at::Tensor rewards = at::tensor({0.0, 0.0, 0.0, 0.0, 1.0, 2.0, 2.0, 0.0});
  const at::Tensor shares = at::tensor({0.25, 0.25, 0.25, 0.25, 0.0, 0.5, 0.5, 0.0}, at::kDouble);
  EXPECT_TRUE(at::allclose(shares_of_best(rewards.view({2, 4})).view({8}), shares));
  Policy policy = b.policy;
  const auto leaf = std::make_shared<LeafField>();
  policy.tuned = leaf;
  const FinetuneContext context{
      policy, *b.problem.reward, *b.problem.path, b.table, kMethodStreams, b.labels, {2}};
  const auto gradient_of = [&](const char* name) {
    EndpointConfig c;
    c.advantage.group = 4;
    c.noisings = 1;
    EndpointRegression method(name, c);
    Batch batch = method.collect(b.context(), 0, 0, 8, false);
    batch.rewards = rewards;
    const at::AutoGradMode grad(true);
    leaf->v = at::zeros({8, 2}).set_requires_grad(true);
    const at::Tensor g = torch::autograd::grad({method.loss(context, batch, 8).loss}, {leaf->v})[0];
    return std::pair(g.to(at::kDouble), batch.targets[0].to(at::kDouble));
  };
  // d/dv of sum_i 4 share_i mean_d (v - y)^2 / 8 at v = 0
  const auto [best, y] = gradient_of("best-of-group");
  const at::Tensor every_winner_whole =
      at::tensor({1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0}, at::kDouble);
  EXPECT_TRUE(at::allclose(best, -0.5 * shares.unsqueeze(1) * y, 1e-5, 1e-7)) << best;
  EXPECT_FALSE(at::allclose(best, -0.5 * every_winner_whole.unsqueeze(1) * y, 1e-5, 1e-7));
  const auto [preferred, unused] = gradient_of("dpo");
  EXPECT_EQ(preferred.narrow(0, 0, 4).abs().max().item<double>(), 0);  // nothing to prefer
  EXPECT_EQ((preferred.narrow(0, 4, 4).abs().sum(1) > 0).sum().item<std::int64_t>(),
            3);  // both winners and the loser
}

TEST(finetune_advantages, TiesGetTheSame) {
  const at::Tensor r = at::tensor({0.0, 1.0, 0.0, 1.0, 5.0, 5.0, 5.0, 5.0}, at::kDouble);
  for (const char* kind : {"centred", "group", "batch", "rank", "pairwise"}) {
    const at::Tensor a = advantages(r, {4, kind, 0});
    EXPECT_EQ(a[0].item<double>(), a[2].item<double>()) << kind;
    EXPECT_EQ(a[1].item<double>(), a[3].item<double>()) << kind;
    EXPECT_GT(a[1].item<double>(), a[0].item<double>()) << kind;
    EXPECT_EQ(a.narrow(0, 4, 4).abs().max().item<double>(), 0)
        << kind << ": a group of equal rewards teaches nothing";
  }
  EXPECT_TRUE(at::allclose(advantages(r, {4, "rank", 0}).narrow(0, 0, 4),
                           at::tensor({-1.0, 1.0, -1.0, 1.0}, at::kDouble)));
}

TEST(finetune_policy_gradient, RatiosClippingAndTheFirstGradient) {
  const MethodBench b;
  PolicyGradientConfig c;
  c.advantage = {8, "centred", 0};
  c.clip = 0;
  c.kl = 0;
  c.density = "sum";
  PolicyGradient method(c);
  const at::AutoGradMode grad(true);
  method.begin_step(b.context(), 4, 0);
  const Batch batch = method.collect(b.context(), 4, 0, 8, false);
  const std::vector<at::Tensor> found = torch::autograd::grad(
      {method.loss(b.context(), batch, 8).loss}, b.policy.trainable.tensors());
  at::Tensor plain = at::zeros({});  // -E[A log p], the gradient on the first pass
  for (std::size_t k = 0; k < b.table.steps.size(); ++k) {
    const Transition& s = b.table.steps[k];
    plain = plain -
            (batch.advantages *
             transition_log_density(
                 s, batch.states[k],
                 b.policy.tuned->velocity(batch.states[k], time_tensor(s.t, batch.states[k]), {}),
                 batch.states[k + 1]))
                    .mean() /
                static_cast<double>(b.table.size());
  }
  const std::vector<at::Tensor> expected =
      torch::autograd::grad({plain}, b.policy.trainable.tensors());
  for (std::size_t i = 0; i < found.size(); ++i) {
    EXPECT_LT((found[i] - expected[i]).abs().max().item<double>(),
              1e-4 * (1 + expected[i].abs().max().item<double>()));
  }
  const Batch kept =
      method.collect(b.context(), 4, 0, 8, true);  // without the graphs of its rollout
  // Far from the collecting policy everything that moved with its advantage is clipped.
  c.clip = 1e-3;
  PolicyGradient clipped(c);
  clipped.begin_step(b.context(), 4, 0);
  Policy policy = b.policy;
  const auto leaf = std::make_shared<LeafField>();
  policy.tuned = leaf;
  const FinetuneContext context{
      policy, *b.problem.reward, *b.problem.path, b.table, kMethodStreams, b.labels, {2}};
  std::vector<at::Tensor> velocities;
  for (std::size_t k = 0; k < b.table.steps.size();
       ++k) {  // every transition more likely for good samples, less for bad ones
    const Transition& s = b.table.steps[k];
    const at::Tensor reached = (batch.states[k + 1] - batch.states[k] * s.p) / s.c;
    velocities.push_back(batch.tuned_velocities[k] + 0.2 * batch.advantages.sign().unsqueeze(1) *
                                                         (reached - batch.tuned_velocities[k]));
  }
  leaf->v = at::cat(velocities).detach().to(at::kFloat).set_requires_grad(true);
  EXPECT_EQ(torch::autograd::grad({clipped.loss(context, kept, 8).loss}, {leaf->v})[0]
                .abs()
                .max()
                .item<double>(),
            0);
}

// Central differences in double, with common random numbers: the loss as a function of the weights,
// path included.
TEST(finetune_direct, GradientsAgreeWithCentralDifferences) {
  for (const std::string& name : {std::string("draft"), std::string("discrete-adjoint")}) {
    const MethodBench b(at::kDouble);
    DirectGradientConfig c;
    c.last = 0;
    c.preserve = name == "draft" ? 0.3 : 0;
    DirectGradient method(name, c);
    const std::vector<at::Tensor> g = b.gradient(method);
    std::vector<at::Tensor> direction;
    std::uint32_t key = 0;
    for (const at::Tensor& w : b.policy.trainable.tensors()) {
      direction.push_back(
          kMethodStreams.normal(Purpose::kProbe, ++key, 0, 0, 1, w.sizes(), at::kDouble)[0]);
    }
    const auto moved = [&](double h) {
      const std::vector<at::Tensor> weights = b.policy.trainable.tensors();
      {
        const at::NoGradGuard no_grad;
        for (std::size_t i = 0; i < weights.size(); ++i) {
          at::Tensor(weights[i]).add_(direction[i], h);
        }
      }
      const double value = b.loss(method).item<double>();
      const at::NoGradGuard no_grad;
      for (std::size_t i = 0; i < weights.size(); ++i) at::Tensor(weights[i]).sub_(direction[i], h);
      return value;
    };
    EXPECT_NEAR((moved(1e-5) - moved(-1e-5)) / 2e-5 / dot(g, direction), 1, 1e-6) << name;
  }
}

// One step's graph at a time, and the same gradient to rounding.
TEST(finetune_direct, BasicAdjointMatchingIsTheDiscreteAdjoint) {
  const MethodBench b(at::kDouble);
  DirectGradient chain("discrete-adjoint", {});
  BasicAdjointMatching basic;
  const std::vector<at::Tensor> g = b.gradient(chain);
  const std::vector<at::Tensor> h = b.gradient(basic);
  for (std::size_t i = 0; i < g.size(); ++i) {
    EXPECT_LT((g[i] - h[i]).abs().max().item<double>(),
              1e-10 * (1 + g[i].abs().max().item<double>()));
  }
  AdjointMatchingConfig c = adjoint_matching_preset("exact", 6);
  c.loss_steps = 0;
  AdjointMatching lean(c);
  EXPECT_GT(
      std::abs(dot(g, b.gradient(lean)) / dot(g, g) - 2.0 / 6),
      1e-5);  // the lean one (a mean over steps, no 1/2) is another gradient away from the optimum
}

TEST(finetune_direct, WindowsStopsAndHinges) {
  const MethodBench b(at::kDouble);
  const auto config = [](auto change) {
    DirectGradientConfig c;
    change(c);
    return c;
  };
  // All steps one by one: draft with last = K is full backpropagation, and a smaller window is
  // another gradient.
  DirectGradient all("draft", config([](DirectGradientConfig& c) { c.last = 6; }));
  DirectGradient zero("draft", config([](DirectGradientConfig& c) { c.last = 0; }));
  DirectGradient one("draft", config([](DirectGradientConfig& c) { c.last = 1; }));
  const std::vector<at::Tensor> full = b.gradient(all);
  EXPECT_NEAR(dot(full, b.gradient(zero)) / dot(full, full), 1, 1e-12);
  EXPECT_GT(std::abs(dot(full, b.gradient(one)) / dot(full, full) - 1), 0.05);
  EXPECT_EQ(all.training_calls(b.table), 6);
  DirectGradient hinged("draft", config([](DirectGradientConfig& c) {
                          c.hinged = true;
                          c.hinge = -1e6;
                        }));
  EXPECT_EQ(b.loss(hinged).item<double>(), 0);
  // Jumps: the value is that of the path, and without the nested part the first jump moves the end
  // point by its own length only.
  DirectGradient leap("leap-align", config([](DirectGradientConfig& c) {
                        c.nested = 0;
                        c.tau = 1e6;
                      }));
  leap.begin_step(b.context(), 4, 0);
  const Batch path = leap.collect(b.context(), 4, 0, 8, false);
  EXPECT_NEAR(b.loss(leap).item<double>(),
              -b.problem.reward->score(path.states[2], {}).mean().item<double>() / 2e6, 1e-12);
  const std::vector<std::int64_t> two = kMethodStreams.choose(Purpose::kSubset, 4, 0, 6, 2);
  const at::AutoGradMode grad(true);
  at::Tensor plain = at::zeros({}, at::kDouble);
  const at::Tensor slope = b.problem.reward->score_and_gradient(path.states[2], {}).gradient;
  for (int i = 0; i < 2; ++i) {
    const double t = b.table.steps[static_cast<std::size_t>(two[static_cast<std::size_t>(i)])].t;
    const double next = i == 0 ? b.table.steps[static_cast<std::size_t>(two[1])].t : 1.0;
    plain = plain - ((next - t) *
                     b.policy.tuned->velocity(path.states[static_cast<std::size_t>(i)],
                                              time_tensor(t, path.states[0]), {}) *
                     slope)
                            .sum() /
                        8 / 2e6;
  }
  const std::vector<at::Tensor> expected =
      torch::autograd::grad({plain}, b.policy.trainable.tensors());
  const std::vector<at::Tensor> leaped = b.gradient(leap);
  EXPECT_NEAR(dot(leaped, expected) / dot(expected, expected), 1, 1e-9);
  DirectGradient nested("leap-align", config([](DirectGradientConfig& c) {
                          c.nested = 1;
                          c.tau = 1e6;
                        }));
  EXPECT_GT(std::abs(dot(b.gradient(nested), expected) / dot(expected, expected) - 1), 1e-4);
  for (const char* name : {"draft-lv", "refl", "drtune", "leap-align"}) {
    DirectGradient method(name, {});
    const std::vector<at::Tensor> g = b.gradient(method);
    EXPECT_GT(dot(g, g), 0) << name;
    EXPECT_GT(dot(g, full), 0) << name << ": downhill for the whole path, too";
  }
  test::expect_error(ErrorKind::kConfig, "buffer_passes",
                     [&] { all.collect(b.context(), 0, 0, 4, true); });
}

// On-policy the gradient of the variance is twice that of the relative entropy E[cost - r], in
// expectation.
TEST(finetune_methods, OptionsAct) {
  const MethodBench b;
  const auto endpoint = [&](const std::string& name, auto change) {
    EndpointConfig c;
    c.advantage = {4, "group", 5};
    change(c);
    EndpointRegression method(name, c);
    return b.loss(method).item<double>();
  };
  const auto plain = [](EndpointConfig&) {};
  EXPECT_NE(endpoint("diffusion-nft", plain),
            endpoint("diffusion-nft", [](EndpointConfig& c) { c.self_weight = true; }));
  EXPECT_NE(endpoint("advantage-flow", plain),
            endpoint("advantage-flow", [](EndpointConfig& c) { c.self_weight = true; }));
  EXPECT_NE(endpoint("dpo", plain),
            endpoint("dpo", [](EndpointConfig& c) { c.soft_labels = true; }));
  EXPECT_NE(endpoint("best-of-group", plain),
            endpoint("best-of-group", [](EndpointConfig& c) { c.preserve = 1; }));
  EXPECT_NE(endpoint("dpo", plain), endpoint("dpo", [](EndpointConfig& c) { c.preserve = 1; }));
  DirectGradientConfig c;
  c.last = 5;
  c.random_last = true;
  DirectGradient random("draft", c);
  EXPECT_EQ(random.training_calls(b.table), 3);  // 1..5, the mean
  std::set<double> losses;
  for (std::int64_t step = 0; step < 8; ++step) {
    random.begin_step(b.context(), step, 0);
    losses.insert(static_cast<double>(random.collect(b.context(), 0, 0, 2, false).noises.size()));
  }
  EXPECT_GT(losses.size(), 2U);  // windows of several lengths
  c = {};
  c.copies = 5;
  c.graph_steps = 2;
  EXPECT_EQ(DirectGradient("draft-lv", c).training_calls(b.table), 6);
  EXPECT_EQ(DirectGradient("drtune", c).training_calls(b.table), 3);
  c.late_fraction = 0.01;  // the last step only
  DirectGradient late("refl", c);
  for (std::int64_t step = 0; step < 4; ++step) {
    late.begin_step(b.context(), step, 0);
    EXPECT_EQ(late.collect(b.context(), 0, 0, 2, false).noises.size(), 1U);
  }
}

TEST(finetune_path, LogVarianceGradientIsTwiceTheRelativeEntropys) {
  const MethodBench b(at::kDouble);
  PathLoss variance("log-variance");
  DirectGradient entropy("discrete-adjoint", {});
  const std::vector<at::Tensor> direction =
      b.gradient(entropy, 4000, 99);  // any fixed direction along which both are compared
  std::vector<double> twice, difference;
  for (std::int64_t step = 0; step < 24; ++step) {
    twice.push_back(2 * dot(b.gradient(entropy, 4000, 100 + step), direction));
    difference.push_back(dot(b.gradient(variance, 4000, step), direction) - twice.back());
  }
  const Estimate size = mean_estimate(at::tensor(twice, at::kDouble));
  const Estimate off = mean_estimate(at::tensor(difference, at::kDouble));
  EXPECT_LT(off.se, 0.1 * size.value);
  EXPECT_NEAR(off.value, 0, 4 * off.se);
}

TEST(finetune_methods, TableNeedsAndRefusals) {
  EXPECT_GE(method_listing().size(), 16U);
  MethodBench b;
  const RewardInfo blind{"blind", false, ""};
  const RewardInfo open{"open", true, ""};
  TransitionTable noiseless = b.table;
  noiseless.steps.back().s = 0;
  for (const MethodListing& m : method_listing()) {
    MethodConfig c;
    c.name = m.name;
    const auto method = make_method(c);
    EXPECT_EQ(method->name(), m.name);
    EXPECT_NE(m.calls.find(" | "), std::string::npos) << m.name;
    const MethodNeeds needs = method->needs();
    const auto refused = [&](const RewardInfo& reward, const TransitionTable& table) {
      try {
        require_method_fits(*method, reward, table);
        return false;
      } catch (const Error& error) {
        EXPECT_FALSE(error.hint().empty());
        return true;
      }
    };
    EXPECT_EQ(refused(blind, b.table), needs.reward_gradient) << m.name;
    EXPECT_EQ(refused(open, noiseless), needs.step_density) << m.name;
    EXPECT_EQ(m.needs.find("reward gradient") != std::string::npos, needs.reward_gradient)
        << m.name;
    EXPECT_EQ(m.needs.find("noise") != std::string::npos, needs.step_density) << m.name;
    EXPECT_EQ(m.needs.find("groups") != std::string::npos, needs.group > 1) << m.name;
  }
}

}  // namespace
}  // namespace tiltflow
