// The image tower of CLIP (Radford et al. 2021) with its projection, from Hugging Face files
// (CLIPModel, CLIPVisionModelWithProjection) or OpenAI/open_clip state dicts; and the preprocessing
// that goes with it.
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <map>
#include <memory>
#include <string>

#include "tiltflow/tensor/parameters.h"
#include "tiltflow/tensor/precision.h"

namespace tiltflow {

struct ClipVisionConfig {
  std::int64_t width = 1024;
  std::int64_t layers = 24;
  std::int64_t heads = 16;
  std::int64_t patch = 14;
  std::int64_t image_size = 224;
  std::int64_t mlp = 4096;
  std::int64_t projection = 768;
  std::string activation = "quick_gelu";  // quick_gelu (OpenAI's weights) or gelu
};

class ClipVision {
 public:
  // Tensors by Hugging Face's names; see load_clip_vision. Throws kBadFile when they do not fit.
  ClipVision(ClipVisionConfig config, ParameterSet parameters, const std::string& where,
             MatmulPrecision precision = MatmulPrecision::kFull);
  const ClipVisionConfig& config() const { return config_; }
  // Pixels [N, 3, S, S], preprocessed -> projected embeddings [N, projection], not normalised.
  // Differentiable.
  at::Tensor embed(const at::Tensor& pixels) const;
  // Images [N, 1 or 3, H, W] in [0, 1] -> embeddings: embed(preprocess(images)).
  at::Tensor embed_images(const at::Tensor& images) const;

 private:
  at::Tensor layer(std::int64_t i, const at::Tensor& x) const;
  ClipVisionConfig config_;
  ParameterSet p_;
  MatmulPrecision precision_;
};

// Short side to `size` (bicubic, antialiased, a = -0.5, long side truncated), centre crop, CLIP's
// mean and deviation. Differentiable, and the same as torchvision's evaluation transform on float
// images.
at::Tensor clip_preprocess(const at::Tensor& images, std::int64_t size);

// A folder (config.json with model.safetensors or pytorch_model.bin) or a file. What the tensors do
// not show comes from config.json or `args`: num_heads (else width / 64) and activation (else
// quick_gelu). Throws kBadFile, kConfig.
std::shared_ptr<const ClipVision> load_clip_vision(
    const std::filesystem::path& path, const std::map<std::string, std::string>& args = {},
    MatmulPrecision precision = MatmulPrecision::kFull);

}  // namespace tiltflow
