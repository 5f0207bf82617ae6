#include "tiltflow/nn/joined_linear.h"

#include <torch/csrc/autograd/custom_function.h>

#include "tiltflow/base/error.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct JoinedProduct : torch::autograd::Function<JoinedProduct> {
  // tensors: weights, then biases
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x,
                            const std::vector<at::Tensor>& joined,
                            const std::vector<std::int64_t>& sizes, at::TensorList) {
    context->save_for_backward({x, joined[0]});
    context->saved_data["sizes"] = sizes;
    return at::linear(x, joined[0], joined[1]).to(at::kFloat);
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    if (at::GradMode::is_enabled()) {
      fail(ErrorKind::kFailure, "joined products have no second derivatives",
           "set compute.kernels = \"plain\"");
    }
    const variable_list saved = context->get_saved_variables();
    const std::vector<std::int64_t> sizes = context->saved_data["sizes"].toIntVector();
    const at::Tensor g = gradients[0].to(at::kBFloat16);
    variable_list out(3);  // of x, the copies and the sizes
    if (context->needs_input_grad(0)) out[0] = g.mm(saved[1]);
    // needs_input_grad counts tensors: x first, then those of the list
    bool weights = false;
    for (std::size_t i = 0; i < 2 * sizes.size(); ++i) {
      weights = weights || context->needs_input_grad(1 + i);
    }
    out.resize(3 + 2 * sizes.size());
    if (!weights) return out;
    const std::vector<at::Tensor> of_weights =
        g.t().mm(saved[0]).to(at::kFloat).split_with_sizes(sizes);
    const std::vector<at::Tensor> of_biases = gradients[0].sum(0).split_with_sizes(sizes);
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      out[3 + i] = of_weights[i];
      out[3 + sizes.size() + i] = of_biases[i];
    }
    return out;
  }
};

std::int64_t version_of(const at::Tensor& tensor) {
  return tensor.is_inference() ? 0 : tensor._version();
}

}  // namespace

bool JoinedLinear::takes(const std::vector<Linear>& layers) {
  for (const Linear& layer : layers) {
    if (!layer.bias.defined() || layer.adapter.a.defined() ||
        layer.weight.scalar_type() != at::kFloat ||
        layer.weight.size(1) != layers[0].weight.size(1)) {
      return false;
    }
  }
  return !layers.empty();
}

JoinedLinear::JoinedLinear(std::vector<Linear> layers) : layers_(std::move(layers)) {
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> weights, biases;
  for (const Linear& layer : layers_) {
    weights.push_back(layer.weight.detach().to(at::kBFloat16));
    biases.push_back(layer.bias.detach().to(at::kBFloat16));
    sizes_.push_back(layer.weight.size(0));
    versions_.insert(versions_.end(), {version_of(layer.weight), version_of(layer.bias)});
  }
  weight_ = at::cat(weights);
  bias_ = at::cat(biases);
}

void JoinedLinear::refresh() const {
  const std::lock_guard lock(mutex_);
  const at::NoGradGuard no_grad;
  std::int64_t row = 0;
  for (std::size_t i = 0; i < layers_.size(); row += sizes_[i++]) {
    const auto follow = [&](const at::Tensor& joined, const at::Tensor& own,
                            std::int64_t& version) {
      if (version_of(own) == version) return;
      joined.narrow(0, row, sizes_[i]).copy_(own.detach());
      version = version_of(own);
    };
    follow(weight_, layers_[i].weight, versions_[2 * i]);
    follow(bias_, layers_[i].bias, versions_[2 * i + 1]);
  }
}

at::Tensor JoinedLinear::operator()(const at::Tensor& x) const {
  refresh();
  std::vector<at::Tensor> tensors;
  for (const Linear& layer : layers_) tensors.push_back(layer.weight);
  for (const Linear& layer : layers_) tensors.push_back(layer.bias);
  return JoinedProduct::apply(x, std::vector<at::Tensor>{weight_, bias_}, sizes_,
                              at::TensorList(tensors));
}

}  // namespace tiltflow
