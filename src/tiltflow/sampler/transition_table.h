// A stochastic sampler is a table of affine transitions, built once in double precision:
//   X_{k+1} = p_k X_k + c_k v(X_k, t_k) + s_k xi_k,   xi_k ~ N(0, I).
// Rollouts, lean adjoints, path costs, losses and log-densities all read the same table.
// Source: docs/mathematics.md; Domingo-Enrich et al. 2024 for the memoryless schedule sigma^2 = 2
// eta.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "tiltflow/flow/path.h"

namespace tiltflow {

struct Transition {
  double t, p, c, s;
};

struct TransitionTable {
  std::string name;
  std::vector<Transition> steps;
  double t_end = 1;  // time of the last state
  std::optional<Transition>
      at_end;  // the coefficients the rule gives at t_end (only the paper's adjoint needs them)
  bool memoryless = true;  // X_0 and X_K independent: what makes the fine-tuned law the tilted law
  int size() const { return static_cast<int>(steps.size()); }
};

// kExact: kappa = (1 - alpha_k/alpha_{k+1})/h (exact integral of the linear part) and eta with the
// same denominator offset. kPaper: additionally sigma^2 = 2 (1 - t + h)/(t + h); defined for the
// linear path only.
enum class Offsets { kExact, kPaper };

// Euler-Maruyama on the memoryless SDE dX = (2 v - kappa X) dt + sqrt(2 eta) dB. `grid` has K+1
// times.
TransitionTable memoryless_euler(const Path& path, const std::vector<double>& grid,
                                 Offsets offsets = Offsets::kExact);
// Same SDE, linear part and noise integrated exactly, velocity constant over the step. No pole at t
// = 0 on any path.
TransitionTable exponential_integrator(const Path& path, const std::vector<double>& grid);

// Where the last ancestral step ends: at t = 1 with no noise (usable for sampling only), or
// halfway, where beta is the last beta / sqrt(2), as the final alpha-bar of the official Stable
// Diffusion code.
enum class FinalStep { kClean, kHalfway };
// DDPM ancestral sampling (eta = 1), DDIM (eta = 0) and between, for any path. Memoryless for eta
// = 1.
TransitionTable ddim(const Path& path, const std::vector<double>& grid, double eta,
                     FinalStep final_step);

// Euler-Maruyama with sigma^2 = factor^2 * 2 eta: same marginals, other noise. factor 1 is
// memoryless_euler, 0 the ODE.
TransitionTable scaled_memoryless(const Path& path, const std::vector<double>& grid, double factor);
// Euler-Maruyama with any sigma(t): drift v + sigma^2/(2 eta) (v - kappa x). Not memoryless.
TransitionTable euler_maruyama(const Path& path, const std::vector<double>& grid,
                               const std::function<double(double)>& sigma);

// Not a sampler: the Euler steps of the ODE with s = sqrt(h), rolled out without noise. The Adjoint
// Matching loss on it is h |u + a|^2, the first-order condition of min 1/2 int |u|^2 dt - r(x_1)
// over dx = (v + u) dt. Its optimum is not the tilted law.
TransitionTable deterministic_control(const std::vector<double>& grid);

// Names for configurations: euler, euler-paper, exponential, ancestral, ddim, half-noise, constant;
// "auto" is the one recommended for the path (linear: euler; gvp, vp: exponential). `parameter`:
// eta of ddim, sigma of constant.
TransitionTable make_table(const std::string& name, const Path& path,
                           const std::vector<double>& grid, double parameter = 1);
const std::vector<std::string>& table_names();

}  // namespace tiltflow
