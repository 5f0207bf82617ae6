#include <cmath>

#include "tests/support.h"
#include "tiltflow/flow/time_grid.h"
#include "tiltflow/sampler/rollout.h"
#include "tiltflow/verify/problems.h"

namespace tiltflow {

// Every table reproduces the base law as the grid gets finer.
TEST(sampler_rollout, BaseLawIsReproduced) {
  for (const std::string& name : path_names()) {
    const ExactProblem p = line_gaussian(false, name);
    for (const char* sampler : {"euler", "exponential", "ancestral", "half-noise"}) {
      const TransitionTable table = make_table(sampler, *p.path, uniform_grid(300));
      const RandomStreams streams(1);
      const at::Tensor x_0 = prior_sample(streams, 0, 0, 10000, {1}, at::kDouble);
      const at::Tensor x = rollout(*p.base, table, x_0, {}, keyed_noise(streams, 0, 0, x_0)).last;
      EXPECT_NEAR(x.mean().item<double>(), 0.5, 0.035) << name << " " << sampler;  // 5 s.e. = 0.035
      EXPECT_NEAR(x.var().item<double>(), 0.49, 0.035) << name << " " << sampler;  // 5 s.e. = 0.035
    }
  }
}

TEST(sampler_rollout, KeepsWhatItIsAskedToKeep) {
  const ExactProblem p = plane_modes(false);
  const TransitionTable table = make_table("auto", *p.path, uniform_grid(6));
  const RandomStreams streams(2);
  const at::Tensor x_0 = prior_sample(streams, 0, 0, 5, {2}, at::kDouble);
  RolloutOptions options;
  options.keep_states = options.keep_noises = options.keep_velocities = true;
  const Trajectory path =
      rollout(*p.base, table, x_0, {}, keyed_noise(streams, 0, 0, x_0), options);
  ASSERT_EQ(path.states.size(), 7u);
  for (std::size_t k = 0; k < 6; ++k) {
    const Transition& s = table.steps[k];
    EXPECT_LT((path.states[k] * s.p + path.velocities[k] * s.c + path.noises[k] * s.s -
               path.states[k + 1])
                  .abs()
                  .max()
                  .item<double>(),
              1e-12);
    // the density of the step that was taken, against its definition
    const double d =
        transition_log_density(s, path.states[k], path.velocities[k], path.states[k + 1])[0]
            .item<double>();
    const double xi = path.noises[k][0].square().sum().item<double>();
    EXPECT_NEAR(d, -0.5 * xi - 2 * std::log(s.s) - std::log(2 * M_PI), 1e-9);
  }
}

}  // namespace tiltflow
