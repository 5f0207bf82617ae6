#include <cmath>

#include "tests/finetune/control_bench.h"
#include "tests/support.h"
#include "tiltflow/finetune/soc_matching.h"
#include "tiltflow/verify/control_problems.h"

namespace tiltflow {
namespace {

using test::collect_controlled;

}  // namespace

// E*[g_k] is the optimal shift over s^2 whatever the matrices; under the base's own paths it is
// not. The lean adjoint has no variance here.
TEST(finetune_soc_matching, TargetsHaveTheRightMeanWhateverTheMatrices) {
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
    const Batch optimal = collect_controlled(method, p, 1, 20000);
    const Batch base = collect_controlled(method, p, 0, 20000);
    for (const std::size_t k : {1U, 5U, 9U}) {
      EXPECT_LT(deviation(optimal, k), 4.5) << matrices << " " << gamma << " step " << k;
    }
    EXPECT_GT(deviation(base, 1), 6) << matrices << " " << gamma;
  }
  SocMatching adjoint("socm-adjoint", {});
  const Batch exact = collect_controlled(adjoint, p, 1, 4);
  for (std::size_t k = 1; k < p.table.steps.size(); ++k) {
    EXPECT_TRUE(at::allclose(exact.targets[k], wanted(k).expand_as(exact.targets[k]), 1e-9, 1e-10))
        << k;
  }
}

TEST(finetune_soc_matching, LearnedMatricesHaveLessVariance) {
  const ControlProblem p = ornstein_uhlenbeck(true, 10);
  SocMatchingConfig c;
  c.matrices = "constant";
  SocMatching constant("socm", c);
  c.matrices = "learned";
  c.memory = 0.5;
  SocMatching learned("socm", c);
  std::map<std::string, double> metrics{{"reward", 0}, {"reward_square", 0}};
  const auto spread = [](const Batch& b) { return b.targets[2].var(0).sum().item<double>(); };
  const double before = spread(collect_controlled(learned, p, 1, 4000));
  learned.end_step(metrics);
  for (std::int64_t step = 1; step < 4; ++step) {
    collect_controlled(learned, p, 1, 4000, step);
    metrics = {{"reward", 0}, {"reward_square", 0}};
    learned.end_step(metrics);
  }
  const double after = spread(collect_controlled(learned, p, 1, 4000, 9));
  EXPECT_LT(after, 0.9 * before);
  EXPECT_LT(after, 0.9 * spread(collect_controlled(constant, p, 1, 4000, 9)));
  // What is stored brings the same matrices back.
  SocMatching restored("socm", c);
  metrics = {{"reward", 0}, {"reward_square", 0}};
  learned.end_step(metrics);
  restored.restore(learned.state());
  collect_controlled(restored, p, 1, 8, 10);
  EXPECT_TRUE(at::allclose(restored.matrices(), learned.matrices(), 1e-9, 1e-9));
}

}  // namespace tiltflow
