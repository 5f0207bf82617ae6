// What the files of nn/fused share.
#pragma once

#include <ATen/core/Tensor.h>

namespace tiltflow::fused {

// Throws kFailure when a graph of the backward pass is asked for.
void once_differentiable();

inline bool half(const at::Tensor& x) { return x.scalar_type() == at::kBFloat16; }

}  // namespace tiltflow::fused
