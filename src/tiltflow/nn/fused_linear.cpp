// fused::linear: the products of a layer and of its gradients, each in the way that nn/ways has for
// it.
#include <torch/csrc/autograd/custom_function.h>

#include "tiltflow/nn/fused.h"
#include "tiltflow/nn/fused_parts.h"
#include "tiltflow/nn/kernels/kernels.h"
#include "tiltflow/nn/onednn.h"
#include "tiltflow/nn/ways.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow::fused {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// Who asks for gradients, known before the graph is, and how to multiply.
struct LinearPlan {
  bool input_gradient = false;
  bool weight_gradient = false;
  ProductWay way = ProductWay::kLibrary;
};

at::Tensor flat(const at::Tensor& x) { return x.reshape({-1, x.size(-1)}); }

// [rows, c] -> [c, rows], fp32: libtorch's copy of a transposed view takes four times as long.
at::Tensor transposed(const at::Tensor& x_in) {
  const at::Tensor x = x_in.contiguous();
  const at::Tensor out = at::empty({x.size(1), x.size(0)}, x.options());
  kernels::kernels().full.transpose(x.const_data_ptr<float>(), x.size(1), out.data_ptr<float>(),
                                    x.size(0), x.size(1), x.size(0));
  return out;
}

// g^T x: g [rows, out], x [rows, in] -> [out, in], fp32.
at::Tensor weight_gradient(const at::Tensor& g, const at::Tensor& x) {
  const bool onednn =
      g.device().is_cpu() && g.scalar_type() == at::kFloat && can_use_onednn(at::kFloat) &&
      ways().product(half(g), ProductUse::kWeightGradient, g.size(0), x.size(1), g.size(1)) ==
          ProductWay::kOneDnn;
  if (!onednn) return g.t().mm(x).to(at::kFloat);
  // The left factor has to be transposed: take the narrower one.
  if (x.size(1) < g.size(1)) return transposed(times_packed(transposed(x), g.t(), {}));
  return times_packed(transposed(g), x.t(), {});
}

struct FusedLinear : Function<FusedLinear> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& weight,
                            const at::Tensor& bias, const std::shared_ptr<WeightCopies>& copies,
                            const LinearPlan& plan) {
    const at::ScalarType type = x.scalar_type();
    const bool packed = plan.way == ProductWay::kPacked;
    const at::Tensor b = bias.defined() && half(x) ? copies->half_bias(bias) : bias;
    const auto plain = [&] { return half(x) ? copies->half_weight(weight) : weight; };
    at::Tensor back;  // of the input's gradient
    if (plan.input_gradient) {
      back = packed ? copies->packed(weight, type, /*transposed=*/true) : plain();
    }
    context->save_for_backward({plan.weight_gradient ? x : at::Tensor(), back});
    context->saved_data["way"] = static_cast<std::int64_t>(plan.way);
    if (plan.way == ProductWay::kLibrary) return at::linear(x, plain(), b);
    return times_packed(x, packed ? copies->packed(weight, type, /*transposed=*/false) : plain(),
                        b);
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    once_differentiable();
    const variable_list saved = context->get_saved_variables();
    const at::Tensor g = flat(gradients[0]);
    at::Tensor gx;
    at::Tensor g_weight;
    at::Tensor g_bias;
    if (saved[1].defined() && context->needs_input_grad(0)) {
      const auto way = static_cast<ProductWay>(context->saved_data["way"].toInt());
      if (way == ProductWay::kLibrary) {
        gx = g.mm(saved[1]);
      } else {
        gx = times_packed(g, way == ProductWay::kPacked ? saved[1] : saved[1].t(), {});
      }
      std::vector<std::int64_t> sizes = gradients[0].sizes().vec();
      sizes.back() = gx.size(-1);
      gx = gx.view(sizes);
    }
    if (context->needs_input_grad(1)) g_weight = weight_gradient(g, flat(saved[0]));
    if (context->needs_input_grad(2)) g_bias = g.sum(0, /*keepdim=*/false, at::kFloat);
    return {gx, g_weight, g_bias, at::Tensor(), at::Tensor()};
  }
};

// A weight in training changes before a packed copy of it has paid for itself.
ProductWay way_of(const Linear& layer, const at::Tensor& x, bool trained, bool packing) {
  const std::int64_t rows = x.numel() / std::max<std::int64_t>(1, x.size(-1));
  if (!x.device().is_cpu() || rows == 0 || !can_use_onednn(x.scalar_type())) {
    return ProductWay::kLibrary;
  }
  const ProductUse use = trained || !packing ? ProductUse::kTrained : ProductUse::kFrozen;
  return ways().product(half(x), use, rows, layer.weight.size(1), layer.weight.size(0));
}

}  // namespace

at::Tensor linear(const Linear& layer, const at::Tensor& x, bool packing) {
  const bool graph = at::GradMode::is_enabled();
  LinearPlan plan{graph && x.requires_grad(), graph && layer.weight.requires_grad()};
  plan.way = way_of(layer, x, plan.weight_gradient, packing);
  const at::Tensor y = FusedLinear::apply(x, layer.weight, layer.bias, layer.copies, plan);
  if (!layer.adapter.a.defined()) return y;
  const at::Tensor down = at::linear(x, layer.adapter.a.to(x.scalar_type()));
  return add_low_rank(y, down, layer.adapter.b.to(x.scalar_type()), layer.adapter.scale);
}

}  // namespace tiltflow::fused
