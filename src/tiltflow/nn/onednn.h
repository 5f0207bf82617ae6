// Matrix products by oneDNN, through the operators that libtorch registers for its compiler.
#pragma once

#include <ATen/core/Tensor.h>

namespace tiltflow {

// Whether this libtorch and this processor multiply numbers of this type with oneDNN: fp32 or bf16, each on its own (bf16 needs AVX-512).
bool can_use_onednn(at::ScalarType type);
// x W^T + bias: W [out, in] as packed_weight makes it, or an ordinary tensor with any strides, e.g. a transposed view, which oneDNN brings into its layout
// each time; bias may be undefined. No gradients.
at::Tensor onednn_product(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias);
// W [out, in] in the layout of oneDNN's products. Costs about a twentieth of a product with 512 rows.
at::Tensor packed_weight(const at::Tensor& weight);

}  // namespace tiltflow
