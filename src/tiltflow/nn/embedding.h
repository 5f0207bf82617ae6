// Sinusoidal embeddings of times and grid positions, in SiT's (DiT's) conventions.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace tiltflow {

// t [N] -> [N, width]: [cos(t f_i), sin(t f_i)], f_i = 10000^(-i/(width/2)). Computed in t's type.
at::Tensor timestep_features(const at::Tensor& t, std::int64_t width);

// [1, side*side, width] fp32: first half of the features encodes the column, second half the row;
// each [sin, cos].
at::Tensor sincos_positions(std::int64_t side, std::int64_t width);

}  // namespace tiltflow
