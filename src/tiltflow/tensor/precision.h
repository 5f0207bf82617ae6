// Where reduced precision is allowed: inside matrix products and attention, nowhere else. States,
// adjoints, losses, normalisations and weights at rest stay fp32 (or fp64 in tests).
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

namespace tiltflow {

enum class MatmulPrecision { kFull, kBf16 };  // kFull: the type of the inputs (fp32 or fp64)
MatmulPrecision parse_precision(const std::string& name);  // "fp32" or "bf16"; throws kConfig

// x W^T + b, in `precision`, result in x's type.
at::Tensor linear_in(MatmulPrecision precision, const at::Tensor& x, const at::Tensor& weight,
                     const at::Tensor& bias);

// Throws kNonFinite naming `what` when the tensor has a NaN or infinity.
void require_finite(const at::Tensor& tensor, const std::string& what);

// Peak resident memory of the process so far, bytes.
double peak_memory_bytes();

}  // namespace tiltflow
