// Layers shared by the autoencoders: functions of a parameter set and a name.
#pragma once

#include <functional>

#include "tiltflow/models/autoencoder/autoencoder.h"

namespace tiltflow {

// What every layer needs; `check` makes it look at outputs and name the first that is not finite.
struct LayerContext {
  const ParameterSet& p;
  AutoencoderRuntime runtime;
  bool check = false;
  void inspect(const at::Tensor& y, const std::string& name) const;  // throws kNonFinite
};

// Convolution with "<name>.weight" and "<name>.bias" (if there is one), zero padding that keeps the
// size at stride 1 unless the input is `padded` already.
at::Tensor convolve(const LayerContext& c, const std::string& name, const at::Tensor& x,
                    std::int64_t stride = 1, bool padded = false);
// A block under activation checkpointing where asked for and a gradient is wanted. `body` runs
// again in the backward pass: it must own what it captures, except the autoencoder, which outlives
// it.
at::Tensor block(const LayerContext& c, const at::Tensor& x,
                 const std::function<at::Tensor(const at::Tensor&)>& body);

// Tensors an autoencoder of a given layout consists of (shapes only); for require_fit.
struct KlLayout {
  std::vector<std::int64_t> widths{128, 256, 512, 512};
  std::int64_t blocks = 2;
  std::int64_t latent = 4;
  std::int64_t in = 3;
  std::int64_t out = 3;
  std::int64_t groups = 32;
  bool quant = true;
  bool post_quant = true;
  bool mid_attention = true;
};

std::shared_ptr<Autoencoder> make_kl(const KlLayout& layout, ParameterSet parameters,
                                     AutoencoderRuntime runtime, const std::string& where);
std::shared_ptr<Autoencoder> make_tiny(ParameterSet parameters, AutoencoderRuntime runtime,
                                       const std::string& where);

}  // namespace tiltflow
