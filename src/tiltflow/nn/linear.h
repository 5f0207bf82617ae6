// A linear layer as data: weight, bias and, when the policy is LoRA, a low-rank adapter.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "tiltflow/tensor/parameters.h"
#include "tiltflow/tensor/precision.h"

namespace tiltflow {

struct Linear {
  at::Tensor weight;  // [out, in]
  at::Tensor bias;    // [out] or undefined
  LowRank adapter;    // undefined tensors: none
};

// Looks up "<name>.weight", "<name>.bias" (optional) and the adapter of that name.
Linear make_linear(const ParameterSet& parameters, const AdapterSet& adapters, const std::string& name);

// [..., in] -> [..., out]: x W^T + b + scale (x A^T) B^T
at::Tensor apply(const Linear& layer, const at::Tensor& x, MatmulPrecision precision);

}  // namespace tiltflow
