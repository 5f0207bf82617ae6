#include "tiltflow/nn/linear.h"

#include <map>

#include "tiltflow/nn/onednn.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {

namespace {

// Copies of the weights that are in use, by their data.
std::shared_ptr<WeightCopies> copies_of(const at::Tensor& weight) {
  static std::mutex mutex;
  static std::map<const void*, std::weak_ptr<WeightCopies>> known;
  const std::lock_guard lock(mutex);
  std::erase_if(known, [](const auto& entry) { return entry.second.expired(); });
  std::shared_ptr<WeightCopies> found = known[weight.const_data_ptr()].lock();
  if (!found) known[weight.const_data_ptr()] = found = std::make_shared<WeightCopies>();
  return found;
}

}  // namespace

Linear make_linear(const ParameterSet& parameters, const AdapterSet& adapters,
                   const std::string& name) {
  Linear layer;
  layer.weight = parameters.at(name + ".weight");
  if (parameters.contains(name + ".bias")) layer.bias = parameters.at(name + ".bias");
  if (const auto found = adapters.find(name); found != adapters.end()) {
    layer.adapter = found->second;
  }
  layer.copies = copies_of(layer.weight);
  return layer;
}

at::Tensor WeightCopies::of(const at::Tensor& tensor, int slot) {
  const std::lock_guard lock(mutex_);
  Copy& copy = copies_[slot];
  const std::int64_t version = tensor.is_inference() ? 0 : tensor._version();
  if (copy.source == tensor.const_data_ptr() && copy.version == version) return copy.tensor;
  const at::NoGradGuard no_grad;
  if (!tensor.device().is_cpu() && slot < 2 &&
      copy.source ==
          tensor.const_data_ptr()) {  // in place: recorded calls (nn/recorded) read it there
    copy.tensor.copy_(tensor);
    copy.version = version;
    return copy.tensor;
  }
  at::Tensor made = tensor.detach();
  if (slot != 2 && slot != 3) made = made.to(at::kBFloat16);
  if (slot == 3 || slot == 5) made = made.t().contiguous();
  if (slot >= 2) made = packed_weight(made);
  copy = {made, tensor.const_data_ptr(), version};
  return made;
}

at::Tensor add_low_rank(const at::Tensor& y, const at::Tensor& down, const at::Tensor& b,
                        double scale) {
  return at::addmm(y.view({-1, y.size(-1)}), down.reshape({-1, down.size(-1)}), b.t(), 1, scale)
      .view(y.sizes());
}

at::Tensor apply(const Linear& layer, const at::Tensor& x, MatmulPrecision precision) {
  at::Tensor y = linear_in(precision, x, layer.weight, layer.bias);
  if (!layer.adapter.a.defined()) return y;
  const at::Tensor down = linear_in(precision, x, layer.adapter.a, {});  // [..., in] -> [..., r]
  if (precision == MatmulPrecision::kFull) {
    return add_low_rank(y, down, layer.adapter.b, layer.adapter.scale);
  }
  return y + linear_in(precision, down, layer.adapter.b, {}) * layer.adapter.scale;
}

}  // namespace tiltflow
