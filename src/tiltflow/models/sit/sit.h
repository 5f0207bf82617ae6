// SiT (Ma et al. 2024): a diffusion transformer with adaptive layer norm, official architecture and
// parameter names.
#pragma once

#include <memory>

#include "tiltflow/models/sit/config.h"
#include "tiltflow/models/velocity_model.h"
#include "tiltflow/tensor/random.h"

namespace tiltflow {

// Freshly initialised weights as in the official code (zero modulation and output layers).
ParameterSet init_sit(const SitConfig& config, const RandomStreams& streams);
// Names and shapes alone (meta tensors).
ParameterSet sit_shapes(const SitConfig& config);

// Bytes of weights up to which frozen passes keep packed copies: larger networks have large
// products, which gain less, and no memory to spare.
constexpr double kLargestPacked = 1 << 30;

// velocity: x [N, C, S, S], t [N], labels [N] in [0, num_classes] (undefined: null class) -> [N, C,
// S, S]. Weights may be fp32 or fp64. Throws kBadFile listing missing, unexpected and mis-shaped
// tensors.
std::unique_ptr<VelocityModel> make_sit(const SitConfig& config, ParameterSet parameters,
                                        AdapterSet adapters = {}, ModelRuntime runtime = {});

}  // namespace tiltflow
