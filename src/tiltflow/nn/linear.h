// A linear layer as data: weight, bias and, when the policy is LoRA, a low-rank adapter.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <mutex>
#include <string>

#include "tiltflow/tensor/parameters.h"
#include "tiltflow/tensor/precision.h"

namespace tiltflow {

// bf16 copies of fp32 tensors, made anew when a tensor was written to since. Shared by the pieces of work that run side by side.
class HalfCopies {
 public:
  at::Tensor of(const at::Tensor& tensor, int slot);  // slot 0 or 1: one tensor each

 private:
  std::mutex mutex_;
  at::Tensor copies_[2];
  const void* sources_[2] = {nullptr, nullptr};
  std::int64_t versions_[2] = {-1, -1};
};

struct Linear {
  at::Tensor weight;  // [out, in]
  at::Tensor bias;    // [out] or undefined
  LowRank adapter;    // undefined tensors: none
  std::shared_ptr<HalfCopies> half = std::make_shared<HalfCopies>();
};

// Looks up "<name>.weight", "<name>.bias" (optional) and the adapter of that name.
Linear make_linear(const ParameterSet& parameters, const AdapterSet& adapters, const std::string& name);

// y + scale (down) B^T in one product: y [..., out], down [..., r].
at::Tensor add_low_rank(const at::Tensor& y, const at::Tensor& down, const at::Tensor& b, double scale);

// [..., in] -> [..., out]: x W^T + b + scale (x A^T) B^T
at::Tensor apply(const Linear& layer, const at::Tensor& x, MatmulPrecision precision);

}  // namespace tiltflow
