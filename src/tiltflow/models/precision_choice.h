// What compute.precision means on this machine.
#pragma once

#include <string>

#include "tiltflow/models/runtime_config.h"
#include "tiltflow/nn/ways_speed.h"

namespace tiltflow {

// fp32 or bf16; "auto" is bf16 where products of this machine gain by it (bf16_pays), which is said
// once. An explicit bf16 that is slower than fp32 gets a warning.
MatmulPrecision chosen_precision(const ComputeConfig& config);
// "fp32" or "bf16".
std::string precision_name(const ModelRuntime& runtime);
// "bf16 products are 48 times slower than fp32 ones on this processor", or "" when they are not
// slower or were not measured.
std::string slow_bf16(const ProductSpeeds& speeds);

}  // namespace tiltflow
