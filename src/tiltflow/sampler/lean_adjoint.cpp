#include "tiltflow/sampler/lean_adjoint.h"

#include <algorithm>

#include "tiltflow/base/signals.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {

AdjointPass lean_adjoint(const VelocityField& base, const TransitionTable& table,
                         const std::vector<at::Tensor>& states, const Condition& condition,
                         at::Tensor terminal_adjoint, const AdjointOptions& options) {
  const std::size_t steps = table.steps.size();
  const std::size_t start = options.first + (options.to_start ? 0u : 1u);
  AdjointPass out;
  out.adjoints.resize(steps + 1);
  out.base_velocities.resize(steps);
  out.adjoints[steps] = std::move(terminal_adjoint);
  for (std::size_t end = steps; end > start;) {
    check_stop();
    const std::size_t begin = end - std::min(options.stride, end - start);
    const std::size_t middle = begin + (end - begin) / 2;
    const at::Tensor& a = out.adjoints[end];
    Vjp pass =
        base.vjp(states[middle], time_tensor(table.steps[middle].t, states[middle]), condition, a);
    double p = 1;
    double c = 0;
    for (std::size_t k = end; k-- > begin;) {
      c += p * table.steps[k].c;
      p *= table.steps[k].p;
      out.adjoints[k] = a * p + pass.input_gradient * c;
    }
    out.base_velocities[middle] = std::move(pass.velocity);
    end = begin;
  }
  return out;
}

}  // namespace tiltflow
