// Stochastic solvers with a free diffusion coefficient w(t), as in SiT:
//   dX = (v + w score) dt + sqrt(2 w) dB      (Ma et al. 2024, eq. 5; every w has the flow's
//   marginals)
// Unlike the transition tables of fine-tuning these take any form of w, a last step of their own,
// and Heun's scheme.
#pragma once

#include <string>
#include <vector>

#include "tiltflow/flow/path.h"
#include "tiltflow/sampler/rollout.h"

namespace tiltflow {

// constant, sbdm (= memoryless: eta), sigma (beta), linear (1 - t), decreasing,
// increasing-decreasing; times `norm`, which sits inside the square for `decreasing`. Throws
// kConfig for an unknown form. sbdm is infinite at t = 0 on linear and gvp.
double diffusion(const std::string& form, double norm, const PathPoint& p);
const std::vector<std::string>& diffusion_forms();

struct SdeOptions {
  std::string method = "euler";  // euler (Euler-Maruyama) or heun
  std::string form = "sbdm";     // of the diffusion
  double norm = 1;
  std::string last_step =
      "mean";  // none, mean (drift without noise), tweedie, euler (probability flow)
  double last_step_size = 0.04;  // its length
};

// Times of `points` grid values from t_0 to where the last step begins. As SiT: the ends move
// inwards by `epsilon` where the path, the prediction or the diffusion is singular there.
std::vector<double> sde_grid(const Path& path, const std::string& prediction,
                             const SdeOptions& options, int points, double epsilon = 1e-3);

// From x at grid.front() to grid.back(), then the last step. `field` gives velocities (see
// flow/prediction.h for others). Cost: one evaluation a step (heun: two), one more for the last
// step. Throws kNonFinite when a state stops being finite.
at::Tensor solve_sde(const VelocityField& field, const Path& path, at::Tensor x,
                     const std::vector<double>& grid, const Condition& condition,
                     const NoiseSource& noise, const SdeOptions& options);

}  // namespace tiltflow
