#include "tiltflow/nn/linear.h"

#include "tiltflow/tensor/aten.h"

namespace tiltflow {

Linear make_linear(const ParameterSet& parameters, const AdapterSet& adapters, const std::string& name) {
  Linear layer;
  layer.weight = parameters.at(name + ".weight");
  if (parameters.contains(name + ".bias")) layer.bias = parameters.at(name + ".bias");
  if (const auto found = adapters.find(name); found != adapters.end()) layer.adapter = found->second;
  return layer;
}

at::Tensor HalfCopies::of(const at::Tensor& tensor, int slot) {
  const std::lock_guard lock(mutex_);
  const std::int64_t version = tensor.is_inference() ? 0 : tensor._version();
  if (sources_[slot] != tensor.const_data_ptr() || versions_[slot] != version) {
    const at::NoGradGuard no_grad;
    copies_[slot] = tensor.detach().to(at::kBFloat16), sources_[slot] = tensor.const_data_ptr(), versions_[slot] = version;
  }
  return copies_[slot];
}

at::Tensor add_low_rank(const at::Tensor& y, const at::Tensor& down, const at::Tensor& b, double scale) {
  return at::addmm(y.view({-1, y.size(-1)}), down.reshape({-1, down.size(-1)}), b.t(), 1, scale).view(y.sizes());
}

at::Tensor apply(const Linear& layer, const at::Tensor& x, MatmulPrecision precision) {
  at::Tensor y = linear_in(precision, x, layer.weight, layer.bias);
  if (!layer.adapter.a.defined()) return y;
  const at::Tensor down = linear_in(precision, x, layer.adapter.a, {});  // [..., in] -> [..., r]
  if (precision == MatmulPrecision::kFull) return add_low_rank(y, down, layer.adapter.b, layer.adapter.scale);
  return y + linear_in(precision, down, layer.adapter.b, {}) * layer.adapter.scale;
}

}  // namespace tiltflow
