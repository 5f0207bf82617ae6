// Stochastic control problems with other dynamics than a flow's, as SOC matching is tested on
// (Domingo-Enrich et al. 2023, arXiv 2312.02027): dX = b(X) dt + dB on [0, 1] with reward r(X_1),
// in Euler steps, with the exact optimal control of the discrete chain.
//   ou-linear      b = A x, r = slope . x                          control constant in x
//   ou-quadratic   b = A x, r = -1/2 curvature |x|^2                 control linear in x (Riccati)
//   double-well    b = -grad sum_i kappa_i (x_i^2 - 1)^2, r = -sum_i nu_i (x_i^2 - 1)^2, 10
//   dimensions, kappa and nu 5 and 3 in three of them, 1 in the rest;
//                  one dimension at a time by quadrature
// The first step only draws the start, N(0, 1/4): it cannot be controlled.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "tiltflow/tensor/statistics.h"
#include "tiltflow/verify/trained.h"

namespace tiltflow {

struct ControlProblem {
  std::string name;
  std::int64_t dimension = 1;
  std::shared_ptr<const VelocityField> drift;
  std::shared_ptr<const StateReward> reward;
  TransitionTable table;
  std::function<at::Tensor(const at::Tensor&)>
      reward_gradient;  // differentiable; what the control network may use, undefined: nothing
  // Mean shift s_k^2 E*[grad V_{k+1}] of the optimal transition at X_k = x, [N, d] double.
  std::function<at::Tensor(std::size_t k, const at::Tensor& x)> optimal_shift;
};
ControlProblem ornstein_uhlenbeck(bool quadratic, int steps);
// 100 steps and more: Euler's step of the stiff wells runs away from |x| > sqrt(1 + 1 / (10 h)).
ControlProblem double_well(int steps);

// The drift and a network beside it, trained by a method; with `reward_scale` other than 1 it must
// miss the problem's control.
struct TrainedDrift {
  ControlProblem problem;
  Policy policy;
};
TrainedDrift train_drift(ControlProblem problem, const TrainedOptions& options);
// E |u - u*|^2 / E |u*|^2 over `n` paths of the trained process, summed over steps: 0 for the exact
// control, 1 for none.
Estimate control_error(const TrainedDrift& trained, std::int64_t n, std::uint64_t seed);

}  // namespace tiltflow
