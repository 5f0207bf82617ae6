// A multilayer perceptron velocity network for vectors: x and Fourier features of t in, SiLU
// layers, velocity out.
#pragma once

#include <map>
#include <memory>

#include "tiltflow/models/velocity_model.h"
#include "tiltflow/tensor/random.h"

namespace tiltflow {

struct MlpConfig {
  std::int64_t dimension = 2;
  std::int64_t hidden_size = 64;
  std::int64_t depth = 3;
  std::int64_t frequencies = 8;  // depth = hidden layers
};
MlpConfig mlp_config_from_args(const std::map<std::string, std::string>& args,
                               MlpConfig start = {});
std::map<std::string, std::string> to_args(const MlpConfig& config);

// The output layer starts at zero, so that a side network adds nothing at first.
ParameterSet init_mlp(const MlpConfig& config, const RandomStreams& streams);
// x [N, d], t [N] -> [N, d]; labels are ignored. Names: layers.{0..depth}.{weight,bias}.
std::unique_ptr<VelocityModel> make_mlp(const MlpConfig& config, ParameterSet parameters,
                                        AdapterSet adapters = {}, ModelRuntime runtime = {});

}  // namespace tiltflow
