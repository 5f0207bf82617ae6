// Image autoencoders of latent models, by the names of diffusers: AutoencoderKL (Stable Diffusion,
// SDXL, SD3, FLUX) and AutoencoderTiny (TAESD). Images are [N, 3, H, W] in [-1, 1]; latents here
// are the networks' own ("raw"). Diffusion models live in scaled latents: scaled = (raw - shift) *
// scale.
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <map>
#include <memory>
#include <string>

#include "tiltflow/config/fields.h"
#include "tiltflow/tensor/parameters.h"
#include "tiltflow/tensor/precision.h"

namespace tiltflow {

struct AutoencoderRuntime {
  MatmulPrecision precision =
      MatmulPrecision::kFull;             // of convolutions and products; normalisations stay fp32
  bool activation_checkpointing = false;  // recompute blocks in backward
  std::int64_t slice = 0;                 // samples decoded at a time; 0 = all. Exact.
  std::int64_t tile = 0;  // latents larger than this are decoded in overlapping tiles, blended; 0 =
                          // never. Not exact.
};

// Posterior of the encoder. Tiny autoencoders have no spread: logvar is undefined.
struct Moments {
  at::Tensor mean, logvar;  // logvar clamped to [-30, 20]
};

class Autoencoder {
 public:
  virtual ~Autoencoder() = default;
  Moments encode(const at::Tensor& images) const;
  // Differentiable in the latent when grad mode is on. Throws kNonFinite naming the first layer
  // whose output is not finite.
  at::Tensor decode(const at::Tensor& latent) const;
  virtual std::int64_t latent_channels() const = 0;
  virtual std::int64_t downscale() const = 0;  // pixels per latent, along one side
  virtual const ParameterSet& parameters() const = 0;
  virtual std::string kind() const = 0;  // "kl" or "tiny"

  double scale = 1;
  double shift = 0;
  at::Tensor to_scaled(const at::Tensor& raw) const;
  at::Tensor from_scaled(const at::Tensor& scaled) const;

 protected:
  explicit Autoencoder(AutoencoderRuntime runtime) : runtime_(runtime) {}
  virtual Moments encode_batch(const at::Tensor& images) const = 0;
  // `check`: look at every layer's output.
  virtual at::Tensor decode_batch(const at::Tensor& latent, bool check) const = 0;
  AutoencoderRuntime runtime_;

 private:
  at::Tensor decode_tiled(const at::Tensor& latent) const;
};

// A folder with config.json and diffusion_pytorch_model.{safetensors,bin}, a pipeline folder (its
// vae/), or a weight file (config.json beside it is read). Without a configuration the shapes are
// read from the tensors, 32 groups are assumed and 0.18215 as scale. `args` override:
// scaling_factor, shift_factor, norm_num_groups. Throws kBadFile, kConfig.
std::shared_ptr<const Autoencoder> load_autoencoder(
    const std::filesystem::path& path, const std::map<std::string, std::string>& args = {},
    AutoencoderRuntime runtime = {}, at::ScalarType dtype = at::kFloat);

// The [decoder] section of latent models.
struct AutoencoderConfig {
  std::string file;  // empty: the model makes pixels
  std::map<std::string, std::string>
      args;  // override scaling_factor, shift_factor, norm_num_groups
  std::string precision = "fp32";
  bool activation_checkpointing = true;
  std::int64_t slice = 1;
  std::int64_t tile = 0;
};
void bind(Fields& f, AutoencoderConfig& c);
std::shared_ptr<const Autoencoder> load_autoencoder(const AutoencoderConfig& config);

}  // namespace tiltflow
