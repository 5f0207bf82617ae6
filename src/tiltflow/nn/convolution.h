// Convolutions of pictures in full or reduced precision. Pictures are kept channels-last, the
// layout in which they are fast on CPU.
#pragma once

#include "tiltflow/tensor/precision.h"

namespace tiltflow {

// x [N, C, H, W], weight [O, C, k, k], bias [O] -> [N, O, H', W'] in x's type; the products in
// `precision`.
at::Tensor conv2d_in(MatmulPrecision precision, const at::Tensor& x, const at::Tensor& weight,
                     const at::Tensor& bias, std::int64_t stride, std::int64_t padding);
// weight [C, O, k, k]
at::Tensor conv_transpose2d_in(MatmulPrecision precision, const at::Tensor& x,
                               const at::Tensor& weight, const at::Tensor& bias,
                               std::int64_t stride, std::int64_t padding);

}  // namespace tiltflow
