#include "tiltflow/verify/control_problems.h"
#include "tests/finetune/control_bench.h"
#include "tests/support.h"

namespace tiltflow {
namespace {

using test::collect_controlled;
using test::kSocStreams;

double net_reward(const ControlProblem& problem, double factor, std::int64_t n) {
  SocMatching method("socm-adjoint", {});
  const Batch batch = collect_controlled(method, problem, factor, n);
  return (batch.rewards.to(at::kDouble) - batch.control_cost.to(at::kDouble)).mean().item<double>();
}

}  // namespace

TEST(verify_control_problems, ExactControlsAreOptimal) {
  for (const ControlProblem& p :
       {ornstein_uhlenbeck(false, 25), ornstein_uhlenbeck(true, 25), double_well(50)}) {
    const double best = net_reward(p, 1, 2000);
    for (const double factor : {0.0, 0.7, 1.3}) {
      EXPECT_GT(best, net_reward(p, factor, 2000)) << p.name << " " << factor;  // the same noise
    }
  }
}

TEST(verify_control_problems, GradientForTheNetworkIsTheRewards) {
  const ControlProblem p = double_well(100);
  const at::Tensor x = kSocStreams.normal(Purpose::kProbe, 0, 0, 0, 8, {p.dimension}, at::kDouble);
  EXPECT_TRUE(at::allclose(p.reward_gradient(x), p.reward->score_and_gradient(x, {}).gradient,
                           1e-12, 1e-12));
}

}  // namespace tiltflow
