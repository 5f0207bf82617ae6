// Matrix products by oneDNN, through the operators that libtorch registers for its compiler:
// times_packed (nn/linear) takes packed weights, and ordinary tensors with any strides, e.g. a
// transposed view, which oneDNN brings into its layout each time.
#pragma once

#include <ATen/core/Tensor.h>

namespace tiltflow {

// Whether this libtorch and this processor multiply numbers of this type with oneDNN: fp32 or bf16,
// each on its own (bf16 needs AVX-512).
bool can_use_onednn(at::ScalarType type);
// W [out, in] in the layout of oneDNN's products. Costs about a twentieth of a product with 512
// rows.
at::Tensor packed_weight(const at::Tensor& weight);

}  // namespace tiltflow
