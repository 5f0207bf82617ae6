// Exactly solvable alignment problems: a Gaussian mixture as base, a linear or quadratic reward,
// the tilted law in closed form.
#pragma once

#include <memory>
#include <string>

#include "tiltflow/flow/gaussian_mixture.h"
#include "tiltflow/reward/state_reward.h"

namespace tiltflow {

struct ExactProblem {
  std::string name;
  std::shared_ptr<const MixtureField> base;
  std::shared_ptr<const Path> path;
  QuadraticForm form;
  TiltedMixture target;
  std::shared_ptr<const StateReward> reward;
  std::int64_t dimension() const { return base->mixture().dimension(); }
};

ExactProblem make_problem(std::string name, GaussianMixture base, QuadraticForm reward,
                          const std::string& path = "linear");

// Modes at +-2, deviation 0.4, equal weights, r = slope x: exact w+ = 0.881 at slope 0.5.
ExactProblem two_modes(const std::string& path = "linear", double slope = 0.5);
// Overlapping modes at +-1.2, deviation 0.5, r = 0.7 x, and r = -0.3 (x - 1.5)^2. Trained controls
// use these: between modes that are five deviations apart the lean adjoint is so heavy-tailed that
// a few thousand trajectories miss its mean.
ExactProblem near_modes();
ExactProblem near_modes_quadratic();
ExactProblem plane_modes(bool quadratic);  // three correlated modes in the plane
// A standard normal base and the log-density ratio of a mixture in the plane as reward: p* is that
// mixture. `form` is not used.
ExactProblem unnormalised_modes();
// Gaussian with mean 0.5, variance 0.49: the reference case of the tables in docs/mathematics.md.
ExactProblem line_gaussian(bool quadratic, const std::string& path = "linear");
// Correlated Gaussian in d dimensions, linear or quadratic reward.
ExactProblem wide_gaussian(std::int64_t dimension, bool quadratic);

}  // namespace tiltflow
