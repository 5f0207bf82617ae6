#include "tiltflow/flow/velocity_field.h"

#include "tiltflow/tensor/aten.h"

namespace tiltflow {

Condition Condition::slice(std::int64_t begin, std::int64_t end) const {
  return {labels.defined() ? labels.narrow(0, begin, end - begin) : labels};
}

Vjp VelocityField::vjp(const at::Tensor& x, const at::Tensor& t, const Condition& condition,
                       const at::Tensor& cotangent) const {
  return vjp_of(x, t, condition, [&](const at::Tensor&) { return cotangent; });
}

Vjp VelocityField::vjp_of(const at::Tensor& x, const at::Tensor& t, const Condition& condition,
                          const Cotangent& cotangent) const {
  const at::AutoGradMode grad(true);
  const at::Tensor input = x.detach().set_requires_grad(true);
  const at::Tensor v = velocity(input, t, condition);
  const at::Tensor a = cotangent(v.detach());
  if (!v.requires_grad()) return {v, at::zeros_like(x)};  // a field that does not depend on x
  const auto gradient = torch::autograd::grad({v}, {input}, {a}, /*retain_graph=*/false,
                                              /*create_graph=*/false, /*allow_unused=*/true);
  return {v.detach(), gradient[0].defined() ? gradient[0] : at::zeros_like(x)};
}

at::Tensor time_tensor(double t, const at::Tensor& x) {
  return at::full({1}, t, x.options().requires_grad(false)).expand({x.size(0)});
}

}  // namespace tiltflow
