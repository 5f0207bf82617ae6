#include "tiltflow/nn/embedding.h"

#include <cmath>

#include "tiltflow/tensor/aten.h"

namespace tiltflow {

at::Tensor timestep_features(const at::Tensor& t, std::int64_t width) {
  const std::int64_t half = width / 2;
  const at::Tensor frequencies = at::exp(at::arange(half, t.options().requires_grad(false)) *
                                         (-std::log(10000.0) / static_cast<double>(half)));
  const at::Tensor angles = t.unsqueeze(1) * frequencies;  // [N, width/2]
  return at::cat({angles.cos(), angles.sin()}, 1);
}

at::Tensor sincos_positions(std::int64_t side, std::int64_t width) {
  const std::int64_t quarter = width / 4;
  const at::Tensor omega =
      at::pow(10000.0, -at::arange(quarter, at::kDouble) / static_cast<double>(quarter));
  const at::Tensor angles = at::arange(side, at::kDouble).unsqueeze(1) * omega;  // [side, width/4]
  const at::Tensor line = at::cat({angles.sin(), angles.cos()}, 1);              // [side, width/2]
  const at::Tensor columns = line.unsqueeze(0).expand({side, side, width / 2});  // varies with x
  const at::Tensor rows = line.unsqueeze(1).expand({side, side, width / 2});     // varies with y
  return at::cat({columns, rows}, 2).reshape({1, side * side, width}).to(at::kFloat);
}

}  // namespace tiltflow
