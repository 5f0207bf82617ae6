// Which way is fastest here: short measurements of the choices in nn/ways, and of matrix products
// in fp32 and bf16.
#pragma once

#include <vector>

#include "tiltflow/nn/ways.h"

namespace tiltflow {

// GFLOP/s of products of 256 x 256 matrices in the fastest way, as one piece of work on the device
// of the process; 0: not measured.
struct ProductSpeeds {
  double fp32 = 0;
  double bf16 = 0;
};
// A few milliseconds; where bf16 is very slow, one product of it.
ProductSpeeds measure_product_speeds();
// Whether bf16 gains enough for what it costs in accuracy: products at least 1.2 times as fast as
// in fp32. False for speeds that were not measured.
bool bf16_pays(const ProductSpeeds& speeds);

// Index of the option to take: the first one, unless another takes less than .97 of its time. Not
// empty.
std::size_t preferred(const std::vector<double>& seconds);

// Measures the slots of one type that `known` has not, with libtorch's present number of threads:
// about a tenth of a second on a processor with AVX2. Every figure is the least of several
// interleaved repetitions.
Ways measured_ways(Ways known, bool half);

}  // namespace tiltflow
