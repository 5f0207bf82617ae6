#include <cmath>

#include "tests/finetune/control_bench.h"
#include "tests/finetune/method_bench.h"
#include "tests/finetune/wrapper_bench.h"
#include "tests/support.h"
#include "tiltflow/finetune/endpoint_regression.h"
#include "tiltflow/io/safetensors.h"
#include "tiltflow/models/mixture/mixture_model.h"
#include "tiltflow/sampler/fields.h"
#include "tiltflow/train/finetuning.h"
#include "tiltflow/verify/control_problems.h"

namespace tiltflow {
namespace {

using test::kMethodStreams;
using test::LeafBench;
using test::LeafField;
using test::MethodBench;
using test::WrapperBench;

}  // namespace

// Every endpoint loss is quadratic in v, sample by sample: at its closed-form minimiser the
// gradient is zero, elsewhere it is not.
TEST(finetune_endpoint_regression, MinimisersAreTheDocumentedOnes) {
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

TEST(finetune_endpoint_regression, PreferencesAndWeights) {
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
TEST(finetune_endpoint_regression, TiesShareOneWeight) {
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

TEST(finetune_endpoint_regression, AdvantageWeightedMatchingStartsAsWeightedFlowMatching) {
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

namespace {

// The base's velocity and a constant.
class Shifted final : public VelocityField {
 public:
  Shifted(std::shared_ptr<const VelocityField> base, double by) : base_(std::move(base)), by_(by) {}
  at::Tensor velocity(const at::Tensor& x, const at::Tensor& t, const Condition& c) const override {
    return base_->velocity(x, t, c) + by_;
  }

 private:
  std::shared_ptr<const VelocityField> base_;
  double by_;
};

}  // namespace

TEST(finetune_endpoint_regression, StoredPairsAreThePreference) {
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
  WrapperBench moved;
  moved.policy.tuned = std::make_shared<Shifted>(b.problem.base, -0.3);
  EXPECT_LT(method.loss(moved.context(), batch, 8).loss.item<double>(), std::log(2.0) - 0.05);
  moved.policy.tuned = std::make_shared<Shifted>(b.problem.base, 0.3);
  EXPECT_GT(method.loss(moved.context(), batch, 8).loss.item<double>(), std::log(2.0) + 0.05);
  test::expect_error(ErrorKind::kConfig, "no pairs",
                     [&] { method.collect(b.context(), 0, 0, 7, false); });
}

TEST(finetune_endpoint_regression, BadPairsAndGroupsAreRefused) {
  const WrapperBench b;
  const test::TempDir dir;
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
  EndpointConfig config;
  config.noisings = 2;
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

}  // namespace tiltflow
