// Activation checkpointing: run a function without keeping its intermediates and recompute them in
// the backward pass.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

namespace tiltflow {

using TensorFunction = std::function<at::Tensor(const std::vector<at::Tensor>&)>;

// fn(inputs), with only `inputs` kept for the backward pass. Every tensor that needs a gradient
// must be among `inputs` (weights too). fn must be a pure function of them. Cost: one more forward
// of fn in the backward pass.
at::Tensor checkpoint(TensorFunction fn, const std::vector<at::Tensor>& inputs);

}  // namespace tiltflow
