#include "tiltflow/sampler/lean_adjoint.h"

#include "tiltflow/tensor/aten.h"

namespace tiltflow {

AdjointPass lean_adjoint(const VelocityField& base, const TransitionTable& table, const std::vector<at::Tensor>& states,
                         const Condition& condition, at::Tensor terminal_adjoint, bool to_start, std::size_t first) {
  const std::size_t steps = table.steps.size();
  AdjointPass out;
  out.adjoints.resize(steps + 1);
  out.base_velocities.resize(steps);
  out.adjoints[steps] = std::move(terminal_adjoint);
  for (std::size_t k = steps; k-- > first + (to_start ? 0u : 1u);) {
    const Transition& step = table.steps[k];
    const at::Tensor& a = out.adjoints[k + 1];
    Vjp pass = base.vjp(states[k], time_tensor(step.t, states[k]), condition, a);
    out.adjoints[k] = a * step.p + pass.input_gradient * step.c;
    out.base_velocities[k] = std::move(pass.velocity);
  }
  return out;
}

}  // namespace tiltflow
