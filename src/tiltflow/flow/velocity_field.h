// All that samplers and methods know about a model: its velocity and the transposed Jacobian
// applied to a vector.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>

namespace tiltflow {

// What a field is conditioned on. Undefined labels mean unconditional (the model's null class).
struct Condition {
  at::Tensor labels;  // [N] int64 or undefined
  Condition slice(std::int64_t begin, std::int64_t end) const;
};

struct Vjp {
  at::Tensor velocity;        // v(x, t), [N, ...]
  at::Tensor input_gradient;  // J_v(x, t)^T cotangent, [N, ...]
};

// The vector to multiply, when it depends on the velocity that the same evaluation yields.
using Cotangent =
    std::function<at::Tensor(const at::Tensor& velocity)>;  // no graph; [N, ...] -> [N, ...]

class VelocityField {
 public:
  virtual ~VelocityField() = default;
  // x [N, ...], t [N] (an expanded scalar when all are equal) -> [N, ...]. Differentiable in x and
  // in the weights when grad mode is on.
  virtual at::Tensor velocity(const at::Tensor& x, const at::Tensor& t,
                              const Condition& condition) const = 0;
  // Default: autograd, one forward and one backward; no graph is left behind.
  virtual Vjp vjp_of(const at::Tensor& x, const at::Tensor& t, const Condition& condition,
                     const Cotangent& cotangent) const;
  Vjp vjp(const at::Tensor& x, const at::Tensor& t, const Condition& condition,
          const at::Tensor& cotangent) const;
};

// [N] view of one time value.
at::Tensor time_tensor(double t, const at::Tensor& x);

}  // namespace tiltflow
