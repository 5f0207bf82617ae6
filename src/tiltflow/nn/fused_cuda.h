// The passes of nn/fused on NVIDIA GPUs, one kernel each (sums over tokens: one kernel and one
// reduction), on the current stream. Built when libtorch has CUDA (TILTFLOW_CUDA). x is fp32 [n, t,
// c] without gaps, c a multiple of 4; y, g and results of products are fp32 or bf16; rows (shift,
// scale, gate) are fp32 [n, c] or [1, c]. The same bits every time: no atomic sums.
#pragma once

#include <ATen/core/Tensor.h>

namespace tiltflow::fused::cuda {

#ifdef TILTFLOW_CUDA
inline constexpr bool kBuilt = true;
#else
inline constexpr bool kBuilt = false;
#endif

// norm(x) (1 + scale) + shift in `type`; mean and rstd [n, t] for the backward pass.
struct Normed {
  at::Tensor out, mean, rstd;
};
Normed modulated_norm(const at::Tensor& x, const at::Tensor& shift, const at::Tensor& scale,
                      float epsilon, at::ScalarType type);

// Undefined where not asked for.
struct NormGradients {
  at::Tensor x, shift, scale;
};
NormGradients modulated_norm_backward(const at::Tensor& g, const at::Tensor& x,
                                      const at::Tensor& scale, const at::Tensor& mean,
                                      const at::Tensor& rstd, bool of_x, bool of_rows);

at::Tensor gated_sum(const at::Tensor& x, const at::Tensor& gate, const at::Tensor& y);

// h = x + gate y, and modulated_norm of h.
struct GatedNormed {
  at::Tensor sum;
  Normed normed;
};
GatedNormed gated_norm(const at::Tensor& x, const at::Tensor& gate, const at::Tensor& y,
                       const at::Tensor& shift, const at::Tensor& scale, float epsilon,
                       at::ScalarType type);

// g_sum, g: of the sum and of the normed; h: the sum.
struct GatedNormGradients {
  at::Tensor x, gate, y, shift, scale;  // rows where asked for
};
GatedNormGradients gated_norm_backward(const at::Tensor& g_sum, const at::Tensor& g,
                                       const at::Tensor& h, const at::Tensor& gate,
                                       const at::Tensor& y, const at::Tensor& scale,
                                       const at::Tensor& mean, const at::Tensor& rstd,
                                       bool of_rows);

struct GateGradients {
  at::Tensor gate, y;
};
GateGradients gated_sum_backward(const at::Tensor& g, const at::Tensor& gate, const at::Tensor& y,
                                 bool of_gate, bool of_y);

}  // namespace tiltflow::fused::cuda
