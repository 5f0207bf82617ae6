// The conditional GANs of Orthogonal-Constrained-One-Step-Alignment (MNIST and CIFAR-10),
// generalised to any power-of-two multiple of a start size, with its tensor names: generator
// label_emb, fc, net; discriminator features, fc, label_emb.
#pragma once

#include "tiltflow/models/generator/generator.h"

namespace tiltflow {

struct GanConfig {
  std::int64_t z_dim = 64;
  std::int64_t num_classes = 10;
  std::int64_t embed_dim = 32;
  std::int64_t base_channels = 64;
  std::int64_t image_size = 28;
  std::int64_t channels = 1;
  std::int64_t upsamplings =
      2;  // transposed convolutions; the first picture has side image_size / 2^upsamplings
  std::string activation = "leaky_relu";  // of the generator: leaky_relu (MNIST) or relu (CIFAR)
  std::int64_t d_base_channels = 64;
  std::int64_t feat_dim = 256;  // discriminator
  bool spectral_norm =
      false;  // discriminator: weights divided by their largest singular value (power iteration)

  std::int64_t start_size() const { return image_size >> upsamplings; }
  std::int64_t start_channels() const { return base_channels << upsamplings; }
};

// Arguments by these names, and size = "mnist" or "cifar10" for the published settings. Throws
// kConfig.
GanConfig gan_config_from_args(const std::map<std::string, std::string>& args,
                               GanConfig start = {});
std::map<std::string, std::string> to_args(const GanConfig& config);
// Sizes show in the generator's tensors; the activation is assumed as published (three transposed
// convolutions: relu).
GanConfig infer_gan_config(const ParameterSet& generator,
                           const std::map<std::string, std::string>& args);

// Default initialisation of PyTorch's layers, drawn from keyed streams.
ParameterSet init_gan_generator(const GanConfig& config, const RandomStreams& streams);
std::unique_ptr<Generator> make_gan_generator(const GanConfig& config, ParameterSet parameters,
                                              MatmulPrecision precision = MatmulPrecision::kFull);

// Projection discriminator: convolutions with stride 2, a feature layer, score = linear(feature) +
// <feature, embedding(label)>.
class Discriminator {
 public:
  Discriminator(GanConfig config, ParameterSet parameters,
                MatmulPrecision precision = MatmulPrecision::kFull);
  at::Tensor score(const at::Tensor& images,
                   const at::Tensor& labels) const;  // [N, C, S, S] in [-1, 1], [N] -> [N]
  const GanConfig& config() const { return config_; }
  const ParameterSet& parameters() const { return parameters_; }
  bool is_buffer(const std::string& name) const;
  void update_spectral_norm()
      const;  // one power iteration on every weight; no effect without spectral_norm

 private:
  at::Tensor weight(const std::string& name) const;
  GanConfig config_;
  ParameterSet parameters_;
  MatmulPrecision precision_;
};
ParameterSet init_discriminator(const GanConfig& config, const RandomStreams& streams);
// Reads what init_discriminator made or a PyTorch checkpoint's section "discriminator". Sizes show
// in the tensors. Throws kBadFile.
Discriminator load_discriminator(const std::filesystem::path& path,
                                 const std::string& section = "");

struct HingeLosses {
  at::Tensor discriminator, generator;
};
// mean relu(1 - real) + mean relu(1 + fake), and -mean fake.
HingeLosses hinge_losses(const at::Tensor& real_scores, const at::Tensor& fake_scores);

}  // namespace tiltflow
