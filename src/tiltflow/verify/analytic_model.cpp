#include "tiltflow/verify/analytic_model.h"

#include "tiltflow/tensor/aten.h"

namespace tiltflow {

at::Tensor AnalyticModel::velocity(const at::Tensor& x, const at::Tensor& t,
                                   const Condition& condition) const {
  if (!condition.labels.defined()) return fields_.back()->velocity(x, t, {});
  at::Tensor out;
  for (std::size_t c = 0; c < fields_.size(); ++c) {
    const at::Tensor mine = condition.labels == static_cast<std::int64_t>(c);
    if (!mine.any().item<bool>()) continue;
    const at::Tensor v = fields_[c]->velocity(x, t, {});
    out = out.defined() ? at::where(mine.unsqueeze(1), v, out) : v;
  }
  return out;
}

}  // namespace tiltflow
