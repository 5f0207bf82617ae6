// Multi-head self-attention: the only caller of attention kernels.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "tiltflow/nn/linear.h"

namespace tiltflow {

// kMath: two batched products around a softmax. kFused: libtorch's scaled_dot_product_attention
// (its choice of kernel; the cuDNN kernel is never selected, it has produced NaN in bf16 training).
enum class AttentionBackend { kMath, kFused };
AttentionBackend parse_attention(const std::string& name);  // "math" or "fused"; throws kConfig

// x [N, T, C] -> [N, T, C]; qkv as one linear layer with rows ordered (q, k, v) x heads x head
// size, as in timm.
at::Tensor self_attention(const Linear& qkv, const Linear& proj, std::int64_t heads,
                          const at::Tensor& x, MatmulPrecision precision, AttentionBackend backend);

}  // namespace tiltflow
