// The parts of a transformer block, each in one pass over the activations (or one matrix product),
// forward and backward, on CPU and (nn/fused_cuda) on NVIDIA GPUs, where GELU, attention and
// products are libtorch's own kernels. Activations x are fp32; what goes into and comes out of
// matrix products (y, qkv, hidden) is fp32 or bf16 throughout, so no separate casts are needed.
// With several libtorch threads they share the tokens of each sample. Once differentiable: asking
// for a graph of the backward pass throws kFailure.
#pragma once

#include <ATen/core/Tensor.h>

#include "tiltflow/nn/linear.h"

namespace tiltflow::fused {

// Whether these functions take such activations: fp32 on CPU; in CUDA builds also on GPUs, of a
// width that 4 divides.
bool takes(const at::Tensor& x);

// norm(x) (1 + scale) + shift over the last dimension, epsilon 1e-6: x [N, T, C]; shift, scale [N,
// C] or [1, C]. Result in `out`.
at::Tensor modulated_norm(const at::Tensor& x, const at::Tensor& shift, const at::Tensor& scale,
                          at::ScalarType out);
// x + gate y: x [N, T, C] fp32, gate [N, C] or [1, C], y [N, T, C] -> fp32
at::Tensor gated_sum(const at::Tensor& x, const at::Tensor& gate, const at::Tensor& y);
// h = gated_sum(x, gate, y) and modulated_norm(h, shift, scale) in y's type; on GPUs in one pass.
struct GatedNormed {
  at::Tensor sum, normed;
};
GatedNormed gated_norm(const at::Tensor& x, const at::Tensor& gate, const at::Tensor& y,
                       const at::Tensor& shift, const at::Tensor& scale);
// GELU in its tanh form, in x's type.
at::Tensor gelu(const at::Tensor& x);
// softmax(q k^T / sqrt(d)) v of packed [N, T, 3 C], as nn/attention; -> [N, T, C] in the type of
// `packed`.
at::Tensor attention(const at::Tensor& packed, std::int64_t heads);
// The layer on fp32 or bf16 x, in x's type; W and b are fp32 and cast or packed once per change
// (WeightCopies in nn/linear), their gradients are fp32. Only what the gradients that are asked for
// need is kept: of a frozen layer nothing.
at::Tensor linear(const Linear& layer, const at::Tensor& x, bool packing);

// Threads among which a pass on CPU is shared now.
int threads_of_a_pass();

}  // namespace tiltflow::fused
