#include "tiltflow/nn/onednn.h"

#include <ATen/Context.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include "tiltflow/nn/linear.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

using Operation = std::optional<c10::OperatorHandle>;
const Operation& packing() {
  static const Operation found =
      c10::Dispatcher::singleton().findSchema({"mkldnn::_reorder_linear_weight", ""});
  return found;
}
const Operation& product() {
  static const Operation found =
      c10::Dispatcher::singleton().findSchema({"mkldnn::_linear_pointwise", ""});
  return found;
}

at::Tensor call(const Operation& operation, torch::jit::Stack stack) {
  operation->callBoxed(&stack);
  return stack[0].toTensor();
}

bool works(at::ScalarType type) {
  if (!at::hasMKLDNN() || !packing() || !product()) return false;
  const at::NoGradGuard no_grad;
  try {  // bf16 needs AVX-512: the operator exists without it, and throws
    const at::Tensor ones = at::ones({16, 16}, type);
    const at::Tensor made =
        times_packed(ones, packed_weight(ones), {}) + times_packed(ones, ones.t(), {});
    return made.to(at::kFloat).sub(32).abs().max().item<float>() == 0;
  } catch (const std::exception&) {
    return false;
  }
}

}  // namespace

bool can_use_onednn(at::ScalarType type) {
  static const bool full = works(at::kFloat);
  static const bool half = works(at::kBFloat16);
  return type == at::kFloat ? full : type == at::kBFloat16 && half;
}

at::Tensor packed_weight(const at::Tensor& weight) {
  return call(packing(), {weight, c10::IValue()});
}

at::Tensor times_packed(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  const c10::IValue shift = bias.defined() ? c10::IValue(bias.detach()) : c10::IValue();
  return call(product(), {x, weight, shift, "none", c10::List<std::optional<at::Scalar>>(), ""});
}

}  // namespace tiltflow
