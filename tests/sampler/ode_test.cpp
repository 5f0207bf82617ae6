#include <cmath>

#include "tests/support.h"
#include "tiltflow/flow/time_grid.h"
#include "tiltflow/sampler/ode.h"
#include "tiltflow/verify/problems.h"

namespace tiltflow {

TEST(sampler_ode, OrdersOfConvergence) {
  const ExactProblem p = line_gaussian(false, "gvp");
  const at::Tensor x_0 = at::tensor(std::vector<double>{-1.0, 0.3, 1.7}, at::kDouble).view({3, 1});
  // exact flow of a Gaussian: keeps quantiles, N(0, 1) -> N(0.5, 0.49)
  const at::Tensor exact = x_0 * 0.7 + 0.5;
  for (const auto& [method, order] :
       {std::pair{"euler", 1.0}, {"midpoint", 2.0}, {"heun", 2.0}, {"rk4", 4.0}}) {
    OdeOptions options;
    options.method = parse_ode_method(method);
    const auto error = [&](int steps) {
      return (solve_ode(*p.base, x_0, uniform_grid(steps), {}, options).x - exact)
          .abs()
          .max()
          .item<double>();
    };
    EXPECT_NEAR(std::log2(error(20) / error(40)), order, 0.35) << method;
  }
  OdeOptions adaptive{OdeMethod::kDopri5, 1e-8, 1e-8, 10000};
  const OdeResult forward = solve_ode(*p.base, x_0, {0, 1}, {}, adaptive);
  EXPECT_LT((forward.x - exact).abs().max().item<double>(), 1e-6);
  EXPECT_EQ(forward.evaluations, 1 + 6 * (forward.accepted + forward.rejected));
  EXPECT_LT(
      (solve_ode(*p.base, forward.x, {1, 0}, {}, adaptive).x - x_0).abs().max().item<double>(),
      1e-6)
      << "and back";
}

}  // namespace tiltflow
