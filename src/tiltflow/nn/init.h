// Initial weights, drawn from keyed streams so that they depend on the seed and the tensor's name
// alone.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "tiltflow/tensor/random.h"

namespace tiltflow {

// Uniform in +-sqrt(6/(fan_in + fan_out)); a convolution weight counts as the matrix [out,
// in*kh*kw].
at::Tensor xavier_uniform(const RandomStreams& streams, const std::string& name,
                          at::IntArrayRef shape);
// Uniform in +-1/sqrt(fan_in): libtorch's default for linear and convolution layers.
at::Tensor fan_in_uniform(const RandomStreams& streams, const std::string& name,
                          at::IntArrayRef shape, std::int64_t fan_in);
at::Tensor normal_init(const RandomStreams& streams, const std::string& name, at::IntArrayRef shape,
                       double deviation);

}  // namespace tiltflow
