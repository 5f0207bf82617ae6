// Attention by libtorch's kernels on GPUs: flash attention in bf16, memory-efficient attention in
// fp32, their backward passes told to add up in a fixed order (they do not by default), so that a
// resumed run ends with the same bits.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace tiltflow {

// q, k, v of packed [N, T, 3 C] without gaps, rows ordered (q, k, v) x heads x d: views [N, h, T,
// d].
std::vector<at::Tensor> heads_of(const at::Tensor& packed, std::int64_t heads);

// softmax(q k^T / sqrt(d)) v of packed [N, T, 3 C] -> [N, T, C] in the type of `packed`. Once
// differentiable. Heads that neither kernel takes (d not a multiple of 8 in bf16, of 4 in fp32, or
// above 256) and other devices: scaled_dot_product_attention.
at::Tensor device_attention(const at::Tensor& packed, std::int64_t heads);

}  // namespace tiltflow
