// Linear layers on one input as one bf16 product: on a GPU, many small products cost their
// launches. Gradients reach the layers' own weights.
#pragma once

#include <ATen/core/Tensor.h>

#include <mutex>
#include <vector>

#include "tiltflow/nn/linear.h"

namespace tiltflow {

class JoinedLinear {
 public:
  // Layers of one input width, each with a bias and without an adapter, fp32. Keeps a bf16 copy of
  // all weights.
  explicit JoinedLinear(std::vector<Linear> layers);
  static bool takes(const std::vector<Linear>& layers);

  // x [N, in] bf16 -> [N, sum of out] fp32: the layers' results side by side. Once differentiable.
  at::Tensor operator()(const at::Tensor& x) const;
  // Brings the copy up to date with weights that were written to, where it is: recorded calls read
  // it there.
  void refresh() const;

 private:
  std::vector<Linear> layers_;
  std::vector<std::int64_t> sizes_;
  at::Tensor weight_, bias_;                    // bf16
  mutable std::vector<std::int64_t> versions_;  // of weight and bias of every layer
  mutable std::mutex mutex_;
};

}  // namespace tiltflow
