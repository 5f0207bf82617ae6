// The lean adjoint: gradient of the terminal cost carried back through the base sampler's steps, along given states.
//   a_K = -grad r(X_K);   a_k = p_k a_{k+1} + c_k J_base(X_k, t_k)^T a_{k+1}.
// It is the exact transpose of the step, hence equal to autograd through the unrolled base chain with frozen noise.
#pragma once

#include <vector>

#include "tiltflow/sampler/rollout.h"

namespace tiltflow {

struct AdjointPass {
  std::vector<at::Tensor> adjoints;         // K+1; a_0 undefined unless asked for
  std::vector<at::Tensor> base_velocities;  // K; v_base(X_k, t_k) from the same evaluations; [0] undefined unless a_0 was asked for
};

// `states` X_0..X_K. Nothing before step `first` is computed (a truncated pass); "start" means that step then. Cost:
// K-1-first vector-Jacobian products, one more when `to_start`.
AdjointPass lean_adjoint(const VelocityField& base, const TransitionTable& table, const std::vector<at::Tensor>& states,
                         const Condition& condition, at::Tensor terminal_adjoint, bool to_start = false, std::size_t first = 0);

}  // namespace tiltflow
