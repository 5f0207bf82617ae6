#include "tiltflow/nn/device_attention.h"

#include <ATen/Context.h>
#include <torch/csrc/autograd/custom_function.h>

#include "tiltflow/base/error.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {

std::vector<at::Tensor> heads_of(const at::Tensor& packed, std::int64_t heads) {
  return packed.view({packed.size(0), packed.size(1), 3, heads, packed.size(2) / (3 * heads)})
      .permute({2, 0, 3, 1, 4})
      .unbind(0);
}

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct FixedOrder {
  FixedOrder() { at::globalContext().setDeterministicAlgorithms(true, /*warn_only=*/false); }
  ~FixedOrder() { at::globalContext().setDeterministicAlgorithms(was_, warned_); }
  bool was_ = at::globalContext().deterministicAlgorithms();
  bool warned_ = at::globalContext().deterministicAlgorithmsWarnOnly();
};

at::Tensor joined(const at::Tensor& out) {
  return out.transpose(1, 2).reshape({out.size(0), out.size(2), out.size(1) * out.size(3)});
}

struct DeviceAttention : torch::autograd::Function<DeviceAttention> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& packed_in,
                            std::int64_t heads, bool graph) {
    const at::Tensor packed = packed_in.contiguous();
    const std::vector<at::Tensor> in = heads_of(packed, heads);
    context->saved_data["heads"] = heads;
    if (packed.scalar_type() == at::kBFloat16) {
      const auto result =
          at::_scaled_dot_product_flash_attention(in[0], in[1], in[2], 0.0, false, false);
      context->save_for_backward({packed, std::get<0>(result), std::get<1>(result),
                                  std::get<6>(result), std::get<7>(result)});
      return joined(std::get<0>(result));
    }
    const auto [out, log_sum, seed, offset] = at::_scaled_dot_product_efficient_attention(
        in[0], in[1], in[2], {}, /*compute_log_sumexp=*/graph);
    context->save_for_backward({packed, out, log_sum, seed, offset});
    return joined(out);
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    if (at::GradMode::is_enabled()) {
      fail(ErrorKind::kFailure, "attention kernels have no second derivatives",
           "set compute.kernels = \"plain\" and compute.attention = \"math\"");
    }
    const FixedOrder order;
    const variable_list saved = context->get_saved_variables();
    const at::Tensor& packed = saved[0];
    const at::Tensor& out = saved[1];
    const std::int64_t heads = context->saved_data["heads"].toInt();
    const std::int64_t n = packed.size(0);
    const std::int64_t t = packed.size(1);
    const std::vector<at::Tensor> in = heads_of(packed, heads);
    const at::Tensor g = gradients[0].reshape({n, t, heads, -1}).transpose(1, 2);
    at::Tensor q, k, v, bias;
    if (packed.scalar_type() == at::kBFloat16) {
      std::tie(q, k, v) = at::_scaled_dot_product_flash_attention_backward(
          g, in[0], in[1], in[2], out, saved[2], {}, {}, t, t, 0.0, false, saved[3], saved[4]);
    } else {
      std::tie(q, k, v, bias) = at::_scaled_dot_product_efficient_attention_backward(
          g, in[0], in[1], in[2], {}, out, saved[2], saved[3], saved[4], 0.0,
          {true, true, true, false});
    }
    return {at::stack({q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)}, 2)
                .view(packed.sizes()),
            at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor device_attention(const at::Tensor& packed, std::int64_t heads) {
  const std::int64_t d = packed.size(2) / (3 * heads);
  const bool taken = packed.is_cuda() && d <= 256 &&
                     ((packed.scalar_type() == at::kBFloat16 && d % 8 == 0) ||
                      (packed.scalar_type() == at::kFloat && d % 4 == 0));
  if (taken) {
    return DeviceAttention::apply(packed, heads,
                                  at::GradMode::is_enabled() && packed.requires_grad());
  }
  const std::vector<at::Tensor> in = heads_of(packed.contiguous(), heads);
  return joined(at::scaled_dot_product_attention(in[0], in[1], in[2]));
}

}  // namespace tiltflow
