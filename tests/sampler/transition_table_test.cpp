#include <cmath>

#include "tests/support.h"
#include "tiltflow/flow/time_grid.h"
#include "tiltflow/sampler/transition_table.h"

namespace tiltflow {

TEST(sampler_transition_table, LinearClosedForms) {
  const auto path = make_path("linear");
  const int K = 25;
  const double h = 1.0 / K;
  const TransitionTable euler = memoryless_euler(*path, uniform_grid(K));
  const TransitionTable paper = memoryless_euler(*path, uniform_grid(K), Offsets::kPaper);
  const TransitionTable exponential = exponential_integrator(*path, uniform_grid(K));
  for (int k = 0; k < K; ++k) {
    const double t = k * h;
    const double next = (k + 1) * h;
    const Transition& e = euler.steps[static_cast<std::size_t>(k)];
    const Transition& p = paper.steps[static_cast<std::size_t>(k)];
    const Transition& x = exponential.steps[static_cast<std::size_t>(k)];
    EXPECT_NEAR(e.p, 1 - h / (t + h), 1e-12);
    EXPECT_NEAR(e.c, 2 * h, 1e-12);
    EXPECT_NEAR(e.s * e.s, h * 2 * (1 - t) / (t + h), 1e-12);
    EXPECT_NEAR(p.s * p.s, h * 2 * (1 - t + h) / (t + h), 1e-12);
    EXPECT_NEAR(x.c, (next * next - t * t) / next, 1e-12);
    EXPECT_NEAR(
        x.s * x.s,
        2 / (next * next) * ((next * next - t * t) / 2 - (next * next * next - t * t * t) / 3),
        1e-12);
  }
  EXPECT_NEAR(euler.steps[0].s * euler.steps[0].s, 2,
              1e-12);  // not 1: consistent with the coefficient 2h on v
}

TEST(sampler_transition_table, DdimIsDdpmAtEtaOne) {
  const auto path = make_path("vp");
  const TransitionTable table = ddim(*path, uniform_grid(10), 1, FinalStep::kClean);
  for (std::size_t k = 0; k + 1 < table.steps.size();
       ++k) {  // posterior variance of DDPM in terms of alpha-bar
    const double now = std::pow(path->at(table.steps[k].t).alpha, 2);
    const double next = std::pow(path->at(table.steps[k + 1].t).alpha, 2);
    EXPECT_NEAR(table.steps[k].s * table.steps[k].s, (1 - next) / (1 - now) * (1 - now / next),
                1e-10);
  }
  EXPECT_EQ(table.steps.back().s, 0);
  for (const Transition& step : ddim(*path, uniform_grid(10), 0, FinalStep::kClean).steps) {
    EXPECT_EQ(step.s, 0);
  }
  EXPECT_GT(ddim(*path, uniform_grid(10), 1, FinalStep::kHalfway).steps.back().s, 0);
}

TEST(sampler_transition_table, BadInputIsRefused) {
  const auto path = make_path("gvp");
  test::expect_error(ErrorKind::kConfig, "linear path",
                     [&] { memoryless_euler(*path, uniform_grid(4), Offsets::kPaper); });
  test::expect_error(ErrorKind::kConfig, "did you mean 'euler'",
                     [&] { make_table("eulr", *path, uniform_grid(4)); });
  test::expect_error(ErrorKind::kConfig, "rise",
                     [&] { exponential_integrator(*path, {0, 0.5, 0.5, 1}); });
}

// On the linear path beta = 1 - t: the last of ten steps leaves 0.1 / sqrt 2 of the noise.
TEST(sampler_transition_table, AncestralStepsEndWhereTheNoiseHasFallenByRootTwo) {
  const auto path = make_path("linear");
  const TransitionTable table = ddim(*path, uniform_grid(10), 1, FinalStep::kHalfway);
  EXPECT_NEAR(table.t_end, 1 - 0.1 / std::sqrt(2.0), 1e-12);
  EXPECT_EQ(ddim(*path, uniform_grid(10), 1, FinalStep::kClean).t_end, 1);
}

}  // namespace tiltflow
