// One-step generators: noise and a label in, a sample out, in one call. GANs, plain MLP generators,
// VAE decoders; few-step samplers of flow models are wrapped as generators in noise/flow_generator.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "tiltflow/models/velocity_model.h"
#include "tiltflow/tensor/random.h"

namespace tiltflow {

class Generator {
 public:
  virtual ~Generator() = default;
  virtual const ModelSpec& spec() const = 0;
  virtual const ParameterSet& parameters() const = 0;
  virtual std::vector<std::int64_t> noise_shape() const = 0;   // without the batch dimension
  virtual std::vector<std::int64_t> sample_shape() const = 0;  // likewise
  virtual std::int64_t classes() const = 0;                    // 0: unconditional
  virtual bool is_buffer(
      const std::string& name) const = 0;  // stored but never trained by gradients
  virtual std::unique_ptr<Generator> rebind(ParameterSet parameters) const = 0;
  // z [N, noise...] ~ N(0, I), labels [N] (ignored when unconditional) -> [N, sample...], images in
  // [-1, 1]. Normalisation layers use their stored statistics, so samples do not depend on each
  // other. Differentiable in z and the weights.
  virtual at::Tensor generate(const at::Tensor& z, const at::Tensor& labels) const = 0;

  struct TrainingOutput {
    at::Tensor samples;
    ParameterSet buffers;  // what the stored statistics become; empty when there are none
  };
  // The same with statistics of the batch, as in training.
  virtual TrainingOutput generate_in_training(const at::Tensor& z, const at::Tensor& labels) const {
    return {generate(z, labels), {}};
  }
};

// Noise as rows [N, d] instead of [N, noise...]; labels are left out where the generator knows
// none.
at::Tensor shaped_noise(const Generator& generator, const at::Tensor& rows);
at::Tensor generate_rows(const Generator& generator, const at::Tensor& rows,
                         const at::Tensor& labels);
// What gradients may change: all parameters but buffers.
ParameterSet trainable_of(const Generator& generator);
std::int64_t noise_size(const Generator& generator);

// A multi-layer perceptron without labels: ReLU between layers, tanh at the end; tensors
// "0.weight", "2.weight", ... Arguments: image_size, channels (default: a square picture with 1 or
// 3 channels).
std::unique_ptr<Generator> make_mlp_generator(ParameterSet parameters,
                                              const std::map<std::string, std::string>& args,
                                              MatmulPrecision precision = MatmulPrecision::kFull);
// The decoder of the classic VAE example (fc3, fc4: ReLU, sigmoid); its encoder's tensors are kept
// beside.
std::unique_ptr<Generator> make_vae_generator(ParameterSet parameters,
                                              const std::map<std::string, std::string>& args,
                                              MatmulPrecision precision = MatmulPrecision::kFull);

// "gan", "mlp-generator", "vae" from metadata or tensors; "" = none of them.
std::string generator_family(const ParameterSet& tensors,
                             const std::map<std::string, std::string>& metadata);
// Safetensors or a PyTorch checkpoint (`section`: which state dict, default "generator" when there
// is one). Throws kBadFile.
std::unique_ptr<Generator> load_generator(const std::filesystem::path& path,
                                          const std::map<std::string, std::string>& args = {},
                                          const std::string& section = "",
                                          MatmulPrecision precision = MatmulPrecision::kFull);
void save_generator(const std::filesystem::path& path, const Generator& generator,
                    const ParameterSet& parameters,
                    std::map<std::string, std::string> metadata = {});

}  // namespace tiltflow
