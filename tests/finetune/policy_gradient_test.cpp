#include "tiltflow/finetune/policy_gradient.h"
#include "tests/finetune/control_bench.h"
#include "tests/finetune/method_bench.h"
#include "tests/support.h"
#include "tiltflow/verify/control_problems.h"

namespace tiltflow {
namespace {

using test::kMethodStreams;
using test::LeafBench;
using test::LeafField;
using test::MethodBench;

}  // namespace

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
  // Along the gradient, log-ratios with the sign of the advantage: beyond 0.1 every ratio is
  // clipped, below none is.
  const auto slope_at = [&](double log_ratio) {
    std::vector<at::Tensor> moved;
    for (std::size_t k = 0; k < 5; ++k) {
      const at::Tensor& xi = batch.noises[k];
      const at::Tensor sign = batch.advantages.sign().unsqueeze(1).to(at::kDouble);
      moved.push_back(batch.tuned_velocities[k] +
                      sign * xi * (log_ratio / b.table.steps[k].c) / xi.square().sum(1, true));
    }
    b.leaf->v = at::cat(moved).requires_grad_(true);
    const at::Tensor loss = guard.loss(b.context(), batch, 8).loss;
    return torch::autograd::grad({loss}, {b.leaf->v})[0].abs().max().item<double>();
  };
  EXPECT_LT(slope_at(2), 1e-12);
  EXPECT_LT(slope_at(0.15), 1e-12);
  EXPECT_GT(slope_at(0.05), 1e-3);
}

}  // namespace tiltflow
