// fused::attention: our own kernels, libtorch's flash attention or batched products, as nn/ways
// says.
#include <ATen/Parallel.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu_backward.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>

#include "tiltflow/nn/device_attention.h"
#include "tiltflow/nn/fused.h"
#include "tiltflow/nn/fused_parts.h"
#include "tiltflow/nn/kernels/kernels.h"
#include "tiltflow/nn/ways.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow::fused {
namespace {

using kernels::Bf16;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

const Bf16* half_data(const at::Tensor& x) { return static_cast<const Bf16*>(x.const_data_ptr()); }
Bf16* half_out(const at::Tensor& x) { return static_cast<Bf16*>(x.data_ptr()); }

// libtorch's kernel for CPUs.
struct FlashAttention : Function<FlashAttention> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& packed_in,
                            std::int64_t heads) {
    const at::Tensor packed = packed_in.contiguous();
    const std::vector<at::Tensor> in = heads_of(packed, heads);
    const auto [out, log_sum] =
        at::_scaled_dot_product_flash_attention_for_cpu(in[0], in[1], in[2]);
    context->saved_data["heads"] = heads;
    context->save_for_backward({packed, out, log_sum});
    return out.transpose(1, 2).reshape({packed.size(0), packed.size(1), packed.size(2) / 3});
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    once_differentiable();
    const variable_list saved = context->get_saved_variables();
    const at::Tensor& packed = saved[0];
    const at::Tensor& out = saved[1];
    const std::int64_t heads = context->saved_data["heads"].toInt();
    const std::vector<at::Tensor> in = heads_of(packed, heads);
    const at::Tensor g =
        gradients[0].reshape({packed.size(0), packed.size(1), heads, -1}).transpose(1, 2);
    const auto [gq, gk, gv] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
        g, in[0], in[1], in[2], out, saved[2], 0.0, false);
    const at::Tensor result = at::empty_like(packed);
    std::vector<at::Tensor> to = heads_of(result, heads);
    to[0].copy_(gq);
    to[1].copy_(gk);
    to[2].copy_(gv);
    return {result, at::Tensor()};
  }
};

template <class T>
bool own_kernel(const kernels::Table<T>& table, std::int64_t tokens, std::int64_t head) {
  return tokens <= table.max_tokens && head % table.head_multiple == 0;
}

// Our own kernels, in the type of `packed`.
struct OwnAttention : Function<OwnAttention> {
  // work(first head, last head, scratch), heads shared among libtorch's threads.
  template <class Work>
  static void over_heads(std::int64_t heads, std::int64_t scratch_size, const Work& work) {
    at::parallel_for(0, heads, 1, [&](std::int64_t first, std::int64_t last) {
      work(first, last, at::empty({scratch_size}, at::kFloat).data_ptr<float>());
    });
  }

  static at::Tensor forward(AutogradContext* context, const at::Tensor& packed_in,
                            std::int64_t heads) {
    const at::Tensor packed = packed_in.contiguous();
    const std::int64_t n = packed.size(0);
    const std::int64_t t = packed.size(1);
    const std::int64_t d = packed.size(2) / (3 * heads);
    const at::Tensor out = at::empty({n, t, heads * d}, packed.options());
    const at::Tensor log_sum = at::empty({n, heads, t}, at::kFloat);
    float* sums = log_sum.data_ptr<float>();
    const auto run = [&](const auto& table, const auto* in, auto* to) {
      over_heads(n * heads, table.attention_scratch(t, d),
                 [&](std::int64_t first, std::int64_t last, float* scratch) {
                   table.attention(in, to, sums, scratch, first, last, t, heads, d);
                 });
    };
    if (half(packed)) {
      run(kernels::kernels().half, half_data(packed), half_out(out));
    } else {
      run(kernels::kernels().full, packed.const_data_ptr<float>(), out.data_ptr<float>());
    }
    context->saved_data["heads"] = heads;
    context->save_for_backward({packed, out, log_sum});
    return out;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    once_differentiable();
    const variable_list saved = context->get_saved_variables();
    const at::Tensor& packed = saved[0];
    const at::Tensor& out = saved[1];
    const at::Tensor g = gradients[0].contiguous();
    const at::Tensor result = at::empty_like(packed);
    const float* sums = saved[2].const_data_ptr<float>();
    const std::int64_t heads = context->saved_data["heads"].toInt();
    const std::int64_t n = packed.size(0);
    const std::int64_t t = packed.size(1);
    const std::int64_t d = packed.size(2) / (3 * heads);
    const auto run = [&](const auto& table, const auto* in, const auto* made, const auto* cotangent,
                         auto* to) {
      over_heads(n * heads, table.attention_scratch(t, d),
                 [&](std::int64_t first, std::int64_t last, float* scratch) {
                   table.attention_backward(in, made, cotangent, sums, to, scratch, first, last, t,
                                            heads, d);
                 });
    };
    if (half(packed)) {
      run(kernels::kernels().half, half_data(packed), half_data(out), half_data(g),
          half_out(result));
    } else {
      run(kernels::kernels().full, packed.const_data_ptr<float>(), out.const_data_ptr<float>(),
          g.const_data_ptr<float>(), result.data_ptr<float>());
    }
    return {result, at::Tensor()};
  }
};

// Keeps the whole matrix of scores.
at::Tensor math_attention(const at::Tensor& packed_in, std::int64_t heads) {
  const at::Tensor packed = packed_in.contiguous();
  const std::vector<at::Tensor> in = heads_of(packed, heads);
  const double factor = 1 / std::sqrt(static_cast<double>(in[0].size(-1)));
  const at::Tensor scores = at::matmul(in[0] * factor, in[1].transpose(-2, -1));  // [N, h, T, T]
  return at::matmul(scores.softmax(-1), in[2])
      .transpose(1, 2)
      .reshape({packed.size(0), packed.size(1), packed.size(2) / 3});
}

}  // namespace

at::Tensor attention(const at::Tensor& packed, std::int64_t heads) {
  if (!packed.device().is_cpu()) return device_attention(packed, heads);
  const std::int64_t tokens = packed.size(1);
  const std::int64_t head = packed.size(2) / (3 * heads);
  const bool able = half(packed) ? own_kernel(kernels::kernels().half, tokens, head)
                                 : own_kernel(kernels::kernels().full, tokens, head);
  const AttentionWay way = ways().attention(half(packed), tokens, head);
  if (way == AttentionWay::kOwn && able) return OwnAttention::apply(packed, heads);
  if (way == AttentionWay::kMath) return math_attention(packed, heads);
  // libtorch's bf16 kernel spends its time on setting up products of single blocks; its fp32 kernel
  // is faster.
  return FlashAttention::apply(packed.to(at::kFloat), heads).to(packed.scalar_type());
}

}  // namespace tiltflow::fused
