// A linear layer as data: weight, bias and, when the policy is LoRA, a low-rank adapter.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <mutex>
#include <string>

#include "tiltflow/tensor/parameters.h"
#include "tiltflow/tensor/precision.h"

namespace tiltflow {

// What products need of a weight besides itself, made anew when the weight was written to since.
// Shared by the pieces of work that run side by side and by all layers on the same weight (a base
// and its LoRA policy).
class WeightCopies {
 public:
  at::Tensor half_weight(const at::Tensor& weight) { return of(weight, 0); }  // bf16
  at::Tensor half_bias(const at::Tensor& bias) { return of(bias, 1); }
  // The weight or its transpose in the layout of oneDNN's products (times_packed), fp32 or bf16.
  // Costs about a twentieth of a product with 512 rows.
  at::Tensor packed(const at::Tensor& weight, at::ScalarType type, bool transposed) {
    return of(weight, 2 + (transposed ? 1 : 0) + (type == at::kBFloat16 ? 2 : 0));
  }

 private:
  at::Tensor of(const at::Tensor& tensor, int slot);

  struct Copy {
    at::Tensor tensor;
    const void* source = nullptr;
    std::int64_t version = -1;
  };
  std::mutex mutex_;
  Copy copies_[6];
};

// x W^T + bias, W as packed; bias may be undefined. No gradients.
at::Tensor times_packed(const at::Tensor& x, const at::Tensor& packed_weight,
                        const at::Tensor& bias);

struct Linear {
  at::Tensor weight;  // [out, in]
  at::Tensor bias;    // [out] or undefined
  LowRank adapter;    // undefined tensors: none
  std::shared_ptr<WeightCopies> copies = std::make_shared<WeightCopies>();
};

// Looks up "<name>.weight", "<name>.bias" (optional) and the adapter of that name.
Linear make_linear(const ParameterSet& parameters, const AdapterSet& adapters,
                   const std::string& name);

// y + scale (down) B^T in one product: y [..., out], down [..., r].
at::Tensor add_low_rank(const at::Tensor& y, const at::Tensor& down, const at::Tensor& b,
                        double scale);

// [..., in] -> [..., out]: x W^T + b + scale (x A^T) B^T
at::Tensor apply(const Linear& layer, const at::Tensor& x, MatmulPrecision precision);

}  // namespace tiltflow
