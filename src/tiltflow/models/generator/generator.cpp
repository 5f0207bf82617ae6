#include "tiltflow/models/generator/generator.h"

#include <cmath>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/tensor_file.h"
#include "tiltflow/io/torch_file.h"
#include "tiltflow/models/generator/gan.h"
#include "tiltflow/models/model_file.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/tensor/device.h"
#include "tiltflow/tensor/precision.h"

namespace tiltflow {
namespace {

using Args = std::map<std::string, std::string>;

// Linear layers one after the other; no labels, no normalisation.
class PlainGenerator final : public Generator {
 public:
  PlainGenerator(ModelSpec spec, std::vector<std::string> layers, std::vector<std::int64_t> shape,
                 ParameterSet parameters, MatmulPrecision precision)
      : spec_(std::move(spec)),
        layers_(std::move(layers)),
        shape_(std::move(shape)),
        parameters_(std::move(parameters)),
        precision_(precision) {}
  const ModelSpec& spec() const override { return spec_; }
  const ParameterSet& parameters() const override { return parameters_; }
  std::vector<std::int64_t> noise_shape() const override {
    return {parameters_.at(layers_.front() + ".weight").size(1)};
  }
  std::vector<std::int64_t> sample_shape() const override { return shape_; }
  std::int64_t classes() const override { return 0; }
  bool is_buffer(
      const std::string& name) const override {  // an encoder's tensors are carried along
    for (const std::string& layer : layers_) {
      if (starts_with(name, layer + ".")) return false;
    }
    return true;
  }
  std::unique_ptr<Generator> rebind(ParameterSet parameters) const override {
    return std::make_unique<PlainGenerator>(spec_, layers_, shape_, std::move(parameters),
                                            precision_);
  }
  at::Tensor generate(const at::Tensor& z, const at::Tensor&) const override {
    at::Tensor h = on_device_of(parameters_.at(layers_.front() + ".weight"), z);
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      h = linear_in(precision_, h, parameters_.at(layers_[i] + ".weight"),
                    parameters_.at(layers_[i] + ".bias"));
      if (i + 1 < layers_.size()) h = at::relu(h);
    }
    h = spec_.family == "vae" ? at::sigmoid(h) * 2 - 1 : at::tanh(h);
    return on_device_of(z, h).view({z.size(0), shape_[0], shape_[1], shape_[2]});
  }

 private:
  ModelSpec spec_;
  std::vector<std::string> layers_;
  std::vector<std::int64_t> shape_;
  ParameterSet parameters_;
  MatmulPrecision precision_;
};

std::unique_ptr<Generator> make_plain(const std::string& family, std::vector<std::string> layers,
                                      ParameterSet parameters, const Args& args,
                                      MatmulPrecision precision) {
  std::int64_t width = 0;
  for (const std::string& layer : layers) {
    if (!parameters.contains(layer + ".weight") || !parameters.contains(layer + ".bias")) {
      fail(ErrorKind::kBadFile, cat(family, ": tensors of layer '", layer, "' are missing"));
    }
    const at::Tensor& w = parameters.at(layer + ".weight");
    const at::Tensor& b = parameters.at(layer + ".bias");
    if (w.dim() != 2 || b.dim() != 1 || b.size(0) != w.size(0) || (width && w.size(1) != width)) {
      fail(ErrorKind::kBadFile,
           cat(family, ": layer '", layer, "' has weight ", shape_text(w.sizes()), " and bias ",
               shape_text(b.sizes()),
               width ? cat("; ", width, " inputs come from the layer before") : ""));
    }
    width = w.size(0);
  }
  const auto integer = [&](const char* key) -> std::int64_t {
    const auto found = args.find(key);
    return found == args.end() ? 0 : std::atoll(found->second.c_str());
  };
  for (const auto& [key, value] : args) {
    if (key != "image_size" && key != "channels") {
      fail(ErrorKind::kConfig, cat(family, " has no argument '", key, "'"),
           "known: image_size, channels");
    }
  }
  std::int64_t channels = integer("channels");
  std::int64_t side = integer("image_size");
  const auto root = [&](std::int64_t c) {
    return static_cast<std::int64_t>(
        std::llround(std::sqrt(static_cast<double>(width) / static_cast<double>(c))));
  };
  if (channels < 1) channels = root(1) * root(1) == width ? 1 : 3;
  if (side < 1) side = root(channels);
  if (channels * side * side != width) {
    fail(ErrorKind::kBadFile,
         cat(family, ": ", width, " outputs are no square picture with ", channels, " channels"),
         "give image_size and channels as arguments");
  }
  return std::make_unique<PlainGenerator>(
      ModelSpec{family, {{"channels", cat(channels)}, {"image_size", cat(side)}}},
      std::move(layers), std::vector<std::int64_t>{channels, side, side}, std::move(parameters),
      precision);
}

// "0", "2", "4", ... when the tensors are those of a plain sequence of linear layers, else nothing.
std::vector<std::string> sequence_layers(const ParameterSet& tensors) {
  std::vector<std::string> layers;
  for (std::int64_t i = 0; tensors.contains(cat(i, ".weight")); i += 2) layers.push_back(cat(i));
  return tensors.size() == 2 * layers.size() ? layers : std::vector<std::string>{};
}

}  // namespace

ParameterSet trainable_of(const Generator& generator) {
  ParameterSet out;
  for (const auto& [name, tensor] : generator.parameters()) {
    if (!generator.is_buffer(name)) out.add(name, tensor);
  }
  return out;
}

at::Tensor shaped_noise(const Generator& g, const at::Tensor& rows) {
  std::vector<std::int64_t> shape = g.noise_shape();
  shape.insert(shape.begin(), rows.size(0));
  return rows.reshape(shape);
}

at::Tensor generate_rows(const Generator& g, const at::Tensor& rows, const at::Tensor& labels) {
  return g.generate(shaped_noise(g, rows), g.classes() > 0 ? labels : at::Tensor());
}

std::int64_t noise_size(const Generator& generator) {
  std::int64_t n = 1;
  for (const std::int64_t size : generator.noise_shape()) n *= size;
  return n;
}

std::unique_ptr<Generator> make_mlp_generator(ParameterSet parameters, const Args& args,
                                              MatmulPrecision precision) {
  const std::vector<std::string> layers = sequence_layers(parameters);
  if (layers.empty()) {
    fail(ErrorKind::kBadFile, "no MLP generator: expected tensors 0.weight, 0.bias, 2.weight, ...");
  }
  return make_plain("mlp-generator", layers, std::move(parameters), args, precision);
}

std::unique_ptr<Generator> make_vae_generator(ParameterSet parameters, const Args& args,
                                              MatmulPrecision precision) {
  return make_plain("vae", {"fc3", "fc4"}, std::move(parameters), args, precision);
}

std::string generator_family(const ParameterSet& tensors, const Args& metadata) {
  if (const auto found = metadata.find("tiltflow.family"); found != metadata.end()) {
    return found->second == "gan" || found->second == "mlp-generator" || found->second == "vae"
               ? found->second
               : "";
  }
  if (tensors.contains("label_emb.weight") && tensors.contains("fc.0.weight") &&
      tensors.contains("net.0.weight")) {
    return "gan";
  }
  if (tensors.contains("fc3.weight") && tensors.contains("fc4.weight") &&
      tensors.contains("fc21.weight")) {
    return "vae";
  }
  return sequence_layers(tensors).empty() ? "" : "mlp-generator";
}

std::unique_ptr<Generator> load_generator(const std::filesystem::path& path, const Args& overrides,
                                          const std::string& section, MatmulPrecision precision) {
  TensorFile file = read_tensors(path, section);
  const std::string family = generator_family(file.tensors, file.metadata);
  if (family.empty()) {
    fail(ErrorKind::kBadFile, cat(path.string(), ": no one-step generator tiltflow knows"),
         "known: conditional GANs, MLP generators, VAE decoders, and flow models with a few-step "
         "sampler; see `tiltflow inspect`");
  }
  Args args = metadata_args(file.metadata, path.string());
  for (const auto& [key, value] : overrides) args[key] = value;
  ParameterSet tensors;
  for (const auto& [name, tensor] : file.tensors) {
    tensors.add(name,
                to_compute_device(tensor.is_floating_point() ? tensor.to(at::kFloat) : tensor));
    require_finite(tensors.at(name), cat(path.string(), ": tensor '", name, "'"));
  }
  if (family == "mlp-generator") return make_mlp_generator(std::move(tensors), args, precision);
  if (family == "vae") return make_vae_generator(std::move(tensors), args, precision);
  const GanConfig config = infer_gan_config(tensors, args);
  require_fit(init_gan_generator(config, RandomStreams(0)), tensors, path.string());
  return make_gan_generator(config, std::move(tensors), precision);
}

void save_generator(const std::filesystem::path& path, const Generator& generator,
                    const ParameterSet& parameters, Args metadata) {
  write_safetensors(path, parameters, model_metadata(std::move(metadata), generator.spec()));
}

}  // namespace tiltflow
