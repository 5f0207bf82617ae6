// Deterministic solvers of dx/dt = v(x, t): they need only a velocity.
#pragma once

#include <string>
#include <vector>

#include "tiltflow/flow/velocity_field.h"

namespace tiltflow {

// kRk4 is the 3/8 rule, as in torchdiffeq. kDopri5: Dormand-Prince 5(4), adaptive, root-mean-square
// error over the batch.
enum class OdeMethod { kEuler, kMidpoint, kHeun, kRk4, kDopri5 };
OdeMethod parse_ode_method(
    const std::string& name);  // euler, midpoint, heun, rk4, dopri5; throws kConfig

struct OdeOptions {
  OdeMethod method = OdeMethod::kHeun;
  double rtol = 1e-4;
  double atol = 1e-5;     // dopri5
  int max_steps = 10000;  // dopri5; throws kFailure beyond
  bool keep_graph =
      false;  // differentiable in x and the weights (fixed-step methods) when grad mode is on
};

struct OdeResult {
  at::Tensor x;
  int evaluations = 0;
  int accepted = 0;
  int rejected = 0;
};

// From grid.front() to grid.back() (either direction); fixed-step methods step on the grid, dopri5
// chooses its own steps.
OdeResult solve_ode(const VelocityField& field, at::Tensor x, const std::vector<double>& grid,
                    const Condition& condition, const OdeOptions& options = {});

}  // namespace tiltflow
