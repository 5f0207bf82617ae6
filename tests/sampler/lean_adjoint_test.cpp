#include "tiltflow/sampler/lean_adjoint.h"
#include "tests/support.h"
#include "tiltflow/flow/time_grid.h"
#include "tiltflow/models/model_file.h"
#include "tiltflow/verify/problems.h"

namespace tiltflow {

// One Jacobian for a group of steps: exact for a group of one, otherwise with an error that falls
// with the step and grows with the group. Of two steps the Jacobian is that of the second, so the
// very last adjoint is exact.
TEST(sampler_lean_adjoint, CoarsePassesConverge) {
  const ExactProblem problem = near_modes();
  const VelocityField& field = *problem.base;
  const auto error = [&](int steps, std::size_t stride) {
    const TransitionTable table = memoryless_euler(*problem.path, uniform_grid(steps));
    const at::Tensor x_0 = prior_sample(RandomStreams(4), 0, 0, 64, {1}, at::kDouble);
    RolloutOptions options;
    options.keep_states = true;
    const Trajectory path =
        rollout(field, table, x_0, {}, keyed_noise(RandomStreams(4), 1, 0, x_0), options);
    const at::Tensor end = at::ones_like(x_0);
    const AdjointPass exact = lean_adjoint(field, table, path.states, {}, end);
    const AdjointPass coarse = lean_adjoint(field, table, path.states, {}, end, {.stride = stride});
    const auto K = static_cast<std::size_t>(steps);
    if (stride == 2) {
      EXPECT_TRUE(at::equal(exact.adjoints[K - 1], coarse.adjoints[K - 1]));
    }
    double sum = 0;
    for (std::size_t k = 1; k < K; ++k) {
      sum += ((coarse.adjoints[k] - exact.adjoints[k]).norm() / exact.adjoints[k].norm())
                 .item<double>() /
             static_cast<double>(K - 1);
    }
    return sum;
  };
  EXPECT_EQ(error(40, 1), 0);
  EXPECT_GT(error(40, 2), 1e-3);
  EXPECT_LT(error(160, 2), 0.6 * error(40, 2))
      << "like the root of the step: the Jacobian is that of a state the noise has moved";
  EXPECT_GT(error(40, 4), 1.5 * error(40, 2));
}

// States, adjoints and losses recorded from the official network in fp64.
TEST(sampler_lean_adjoint, GoldenSitTrajectory) {
  const auto base = load_velocity_model(test::golden("sit_a_ema.safetensors"), {{"num_heads", "4"}},
                                        {}, at::kDouble);
  const auto tuned = load_velocity_model(test::golden("sit_a_model.safetensors"),
                                         {{"num_heads", "4"}}, {}, at::kDouble);
  const ParameterSet g = read_safetensors(test::golden("lean_adjoint.safetensors")).tensors;
  const TransitionTable table = memoryless_euler(*make_path("linear"), uniform_grid(8));
  const Condition labels{g.at("y")};
  for (const auto& [prefix, field] :
       {std::pair<std::string, const VelocityField*>{"base", base.model.get()},
        {"onpolicy", tuned.model.get()}}) {
    const at::Tensor X = g.at(prefix + ".X");
    const at::Tensor a = g.at(prefix + ".a");
    const at::Tensor delta = g.at(prefix + ".delta");
    const at::Tensor loss = g.at(prefix + ".loss");
    RolloutOptions keep;
    keep.keep_states = true;
    const Trajectory path =
        rollout(*field, table, g.at("z"), labels, [&](int k) { return g.at("xi")[k]; }, keep);
    EXPECT_LT(test::relative_error(at::stack(path.states), X), 1e-9) << prefix;
    const AdjointPass pass =
        lean_adjoint(*base.model, table, path.states, labels, a[8], {.to_start = true});
    EXPECT_LT(test::relative_error(at::stack(pass.adjoints), a), 1e-9) << prefix;
    const at::NoGradGuard no_grad;
    for (std::int64_t k = 0; k < 8; ++k) {
      const Transition& s = table.steps[static_cast<std::size_t>(k)];
      const at::Tensor d = (tuned.model->velocity(X[k], time_tensor(s.t, X[k]), labels) -
                            pass.base_velocities[static_cast<std::size_t>(k)]) *
                           s.c;
      EXPECT_LT(test::relative_error(d, delta[k]), 1e-8);
      const at::Tensor per_sample = (d / s.s + pass.adjoints[static_cast<std::size_t>(k) + 1] * s.s)
                                        .square()
                                        .flatten(1)
                                        .sum(1);
      EXPECT_LT(test::relative_error(per_sample, loss[k]), 1e-8);
    }
  }
}

}  // namespace tiltflow
