// Named tensors in a fixed order: the weights of a model, the state of an optimiser, the content of
// a file.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace tiltflow {

class ParameterSet {
 public:
  void add(std::string name, at::Tensor tensor);  // throws if the name is taken
  bool contains(const std::string& name) const { return index_.count(name) != 0; }
  const at::Tensor& at(const std::string& name) const;  // throws if absent
  std::size_t size() const { return items_.size(); }
  bool empty() const { return items_.empty(); }
  auto begin() const { return items_.begin(); }
  auto end() const { return items_.end(); }

  std::vector<std::string> names() const;
  std::vector<at::Tensor> tensors() const;
  std::int64_t numel() const;
  double bytes() const;

 private:
  std::vector<std::pair<std::string, at::Tensor>> items_;
  std::map<std::string, std::size_t> index_;
};

// The entries whose name begins with `prefix`, without it.
ParameterSet tensors_below(const ParameterSet& tensors, const std::string& prefix);
std::map<std::string, std::string> args_below(const std::map<std::string, std::string>& args,
                                              const std::string& prefix);
// Deep copy on the same device; `requires_grad` applies to floating-point tensors.
ParameterSet clone(const ParameterSet& source, bool requires_grad);
// Throws kBadFile listing every missing, unexpected and mis-shaped tensor (`what` names the source
// in the message).
void require_fit(const ParameterSet& expected, const ParameterSet& found, const std::string& what);
// require_fit, then overwrites the values of `target` by name.
void assign(const ParameterSet& target, const ParameterSet& source, const std::string& what);
std::string shape_text(at::IntArrayRef shape);  // "[64, 3, 4, 4]"

// y = x W^T gains scale * (x A^T) B^T: A [r, in], B [out, r]. Undefined tensors mean no adapter.
struct LowRank {
  at::Tensor a, b;
  double scale = 0;
};
using AdapterSet =
    std::map<std::string, LowRank>;  // keyed by the linear layer's name, e.g. "blocks.0.attn.qkv"

}  // namespace tiltflow
