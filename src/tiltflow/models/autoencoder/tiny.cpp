// AutoencoderTiny (TAESD): plain convolutions, no normalisation. The layers are numbered; numbers
// without tensors are activations and up-samplings, so the file itself is the layout.
#include <cstdlib>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/models/autoencoder/layers.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

class AutoencoderTiny final : public Autoencoder {
 public:
  AutoencoderTiny(ParameterSet parameters, AutoencoderRuntime runtime)
      : Autoencoder(runtime), p_(std::move(parameters)) {
    for (const auto& [name, tensor] : p_) {
      for (const char* half : {"encoder", "decoder"}) {
        const std::string prefix = cat(half, ".layers.");
        if (starts_with(name, prefix)) {
          auto& last = half[0] == 'e' ? last_encoder_ : last_decoder_;
          last = std::max(last, std::strtoll(name.c_str() + prefix.size(), nullptr, 10));
        }
      }
    }
    for (long long i = 1; i < last_encoder_; ++i) {
      if (strided(cat("encoder.layers.", i))) downscale_ *= 2;
    }
  }
  std::int64_t latent_channels() const override { return p_.at("decoder.layers.0.weight").size(1); }
  std::int64_t downscale() const override { return downscale_; }
  const ParameterSet& parameters() const override { return p_; }
  std::string kind() const override { return "tiny"; }

  Moments encode_batch(const at::Tensor& images) const override {
    const LayerContext c{p_, runtime_};
    at::Tensor h = (images + 1) / 2;
    for (long long i = 0; i <= last_encoder_; ++i) {
      const std::string name = cat("encoder.layers.", i);
      h = p_.contains(name + ".conv.0.weight") ? residual(c, name, h)
                                               : convolve(c, name, h, strided(name) ? 2 : 1);
    }
    return {h, {}};
  }

 protected:
  at::Tensor decode_batch(const at::Tensor& latent, bool check) const override {
    const LayerContext c{p_, runtime_, check};
    constexpr double kMagnitude = 3;
    at::Tensor h = (latent / kMagnitude).tanh() * kMagnitude;
    for (long long i = 0; i <= last_decoder_; ++i) {
      const std::string name = cat("decoder.layers.", i);
      if (p_.contains(name + ".conv.0.weight")) {
        h = residual(c, name, h);
      } else if (p_.contains(name + ".weight")) {
        h = convolve(c, name, h);
      } else if (i == 1) {
        h = at::relu(h);
      } else {
        h = at::upsample_nearest2d(h, {2 * h.size(2), 2 * h.size(3)});
      }
      c.inspect(h, name);
    }
    return h * 2 - 1;
  }

 private:
  bool strided(const std::string& name) const {
    return p_.contains(name + ".weight") && !p_.contains(name + ".bias");
  }
  at::Tensor residual(const LayerContext& c, const std::string& name,
                      const at::Tensor& input) const {
    return block(c, input, [this, c, name](const at::Tensor& x) {
      const at::Tensor h = convolve(
          c, name + ".conv.4",
          at::relu(convolve(c, name + ".conv.2", at::relu(convolve(c, name + ".conv.0", x)))));
      return at::relu(h +
                      (p_.contains(name + ".skip.weight") ? convolve(c, name + ".skip", x) : x));
    });
  }
  ParameterSet p_;
  long long last_encoder_ = 0;
  long long last_decoder_ = 0;
  std::int64_t downscale_ = 1;
};

}  // namespace

std::shared_ptr<Autoencoder> make_tiny(ParameterSet parameters, AutoencoderRuntime runtime,
                                       const std::string& where) {
  for (const auto& [name, tensor] : parameters) {
    const bool known = starts_with(name, "encoder.layers.") || starts_with(name, "decoder.layers.");
    if (!known || (ends_with(name, ".weight") && tensor.dim() != 4)) {
      fail(ErrorKind::kBadFile,
           cat(where, ": unexpected tensor '", name, "' in a tiny autoencoder"));
    }
  }
  for (const char* first : {"encoder.layers.0.weight", "decoder.layers.0.weight"}) {
    if (!parameters.contains(first)) {
      fail(ErrorKind::kBadFile, cat(where, ": missing tensor '", first, "'"));
    }
  }
  return std::make_shared<AutoencoderTiny>(std::move(parameters), runtime);
}

}  // namespace tiltflow
