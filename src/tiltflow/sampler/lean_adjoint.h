// The lean adjoint: gradient of the terminal cost carried back through the base sampler's steps,
// along given states.
//   a_K = -grad r(X_K);   a_k = p_k a_{k+1} + c_k J_base(X_k, t_k)^T a_{k+1}.
// It is the exact transpose of the step, hence equal to autograd through the unrolled base chain
// with frozen noise.
#pragma once

#include <vector>

#include "tiltflow/sampler/rollout.h"

namespace tiltflow {

struct AdjointPass {
  std::vector<at::Tensor> adjoints;         // K+1; undefined where not asked for
  std::vector<at::Tensor> base_velocities;  // K; v_base(X_k, t_k) from the same evaluations;
                                            // undefined where there was none
};

struct AdjointOptions {
  bool to_start = false;  // also the adjoint of the first step's state
  std::size_t first =
      0;  // nothing before this step is computed (a truncated pass); "start" means that step then
  // A coarse pass: one Jacobian, taken at the middle state, serves this many steps on end. With P
  // and C the coefficients of the steps from i to the end e of its group, x_e = P x_i + C v when v
  // stands still, a_i = P a_e + C J^T a_e. Biased; along a path the error falls like the root of
  // the step.
  std::size_t stride = 1;
};

// `states` X_0..X_K. Cost: one vector-Jacobian product for each of the K-1-first steps (one more
// when `to_start`), or for every `stride` of them.
AdjointPass lean_adjoint(const VelocityField& base, const TransitionTable& table,
                         const std::vector<at::Tensor>& states, const Condition& condition,
                         at::Tensor terminal_adjoint, const AdjointOptions& options = {});

}  // namespace tiltflow
