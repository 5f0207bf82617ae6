#include "tiltflow/models/autoencoder/autoencoder.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "tiltflow/base/error.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/log.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/tensor_file.h"
#include "tiltflow/io/weight_files.h"
#include "tiltflow/models/autoencoder/layers.h"
#include "tiltflow/models/model_file.h"
#include "tiltflow/tensor/activation_checkpoint.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/tensor/device.h"

namespace tiltflow {

void LayerContext::inspect(const at::Tensor& y, const std::string& name) const {
  if (check && !at::isfinite(y).all().item<bool>()) {
    fail(ErrorKind::kNonFinite, cat("the autoencoder's layer ", name, " gives NaN or infinity"),
         "decode in fp32, or check the latents' scale");
  }
}

at::Tensor convolve(const LayerContext& c, const std::string& name, const at::Tensor& x,
                    std::int64_t stride, bool padded) {
  const at::Tensor& weight = c.p.at(name + ".weight");
  const at::Tensor bias = c.p.contains(name + ".bias") ? c.p.at(name + ".bias") : at::Tensor();
  const std::int64_t padding = padded ? 0 : weight.size(2) / 2;
  if (c.runtime.precision != MatmulPrecision::kBf16) {
    return at::conv2d(x, weight, bias, stride, padding);
  }
  const at::Tensor y = at::conv2d(x.to(at::kBFloat16), weight.to(at::kBFloat16),
                                  bias.defined() ? bias.to(at::kBFloat16) : bias, stride, padding);
  return y.to(x.scalar_type());
}

at::Tensor block(const LayerContext& c, const at::Tensor& x,
                 const std::function<at::Tensor(const at::Tensor&)>& body) {
  if (!c.runtime.activation_checkpointing || !at::GradMode::is_enabled() || !x.requires_grad()) {
    return body(x);
  }
  return checkpoint([body](const std::vector<at::Tensor>& in) { return body(in[0]); }, {x});
}

at::Tensor Autoencoder::to_scaled(const at::Tensor& raw) const { return (raw - shift) * scale; }

at::Tensor Autoencoder::from_scaled(const at::Tensor& scaled) const {
  return scaled / scale + shift;
}

Moments Autoencoder::encode(const at::Tensor& images) const {
  const Moments found = encode_batch(on_device_of(parameters().begin()->second, images));
  return {on_device_of(images, found.mean), on_device_of(images, found.logvar)};
}

at::Tensor Autoencoder::decode(const at::Tensor& given) const {
  if (given.dim() != 4 || given.size(1) != latent_channels()) {
    fail(ErrorKind::kConfig, cat("the autoencoder decodes ", latent_channels(),
                                 "-channel latents, not ", shape_text(given.sizes())));
  }
  const at::Tensor latent = on_device_of(parameters().begin()->second, given);
  const std::int64_t slice = runtime_.slice > 0 ? runtime_.slice : latent.size(0);
  std::vector<at::Tensor> parts;
  for (std::int64_t i = 0; i < latent.size(0); i += slice) {
    const at::Tensor piece = latent.narrow(0, i, std::min(slice, latent.size(0) - i));
    const bool large = runtime_.tile > 0 && std::max(piece.size(2), piece.size(3)) > runtime_.tile;
    parts.push_back(large ? decode_tiled(piece) : decode_batch(piece, false));
    if (!at::isfinite(parts.back()).all().item<bool>()) {
      const at::NoGradGuard no_grad;
      require_finite(piece, "the latent to be decoded");
      decode_batch(piece, true);  // names the layer
      fail(ErrorKind::kNonFinite, "the autoencoder gives NaN or infinity");
    }
  }
  return on_device_of(given, parts.size() == 1 ? parts[0] : at::cat(parts));
}

// Tiles overlap by a quarter; weights rise linearly from every inner border.
at::Tensor Autoencoder::decode_tiled(const at::Tensor& latent) const {
  const std::int64_t tile = runtime_.tile;
  const std::int64_t overlap = std::max<std::int64_t>(1, tile / 4);
  const std::int64_t step = tile - overlap;
  const std::int64_t f = downscale();
  const auto starts = [&](std::int64_t size) {
    std::vector<std::int64_t> out{0};
    while (out.back() + tile < size) out.push_back(std::min(out.back() + step, size - tile));
    return out;
  };
  const auto ramp = [&](std::int64_t start, std::int64_t length, std::int64_t size) {
    const at::Tensor i = at::arange(length * f).to(at::kFloat);
    const at::Tensor edge = at::full({}, static_cast<double>(overlap * f));
    at::Tensor w = at::ones({length * f});
    if (start > 0) w = at::minimum(w, (i + 1) / edge);
    if (start + length < size) w = at::minimum(w, (static_cast<double>(length * f) - i) / edge);
    return w;
  };
  at::Tensor sum, total;
  for (const std::int64_t y : starts(latent.size(2))) {
    for (const std::int64_t x : starts(latent.size(3))) {
      const std::int64_t height = std::min(tile, latent.size(2));
      const std::int64_t width = std::min(tile, latent.size(3));
      const at::Tensor image = decode_batch(latent.narrow(2, y, height).narrow(3, x, width), false);
      const at::Tensor weight =
          on_device_of(latent, ramp(y, height, latent.size(2)).unsqueeze(1) *
                                   ramp(x, width, latent.size(3)).unsqueeze(0));
      const std::vector<std::int64_t> pad{x * f, (latent.size(3) - x - width) * f, y * f,
                                          (latent.size(2) - y - height) * f};
      const at::Tensor part = at::constant_pad_nd(image * weight, pad);
      const at::Tensor mass = at::constant_pad_nd(weight, pad);
      sum = sum.defined() ? sum + part : part;
      total = total.defined() ? total + mass : mass;
    }
  }
  return sum / total;
}

namespace {

using Json = nlohmann::json;

double number(const std::map<std::string, std::string>& args, const Json& config, const char* key,
              double fallback) {
  if (const auto given = args.find(key); given != args.end()) {
    char* end = nullptr;
    const double value = std::strtod(given->second.c_str(), &end);
    if (given->second.empty() || *end || !std::isfinite(value)) {
      fail(ErrorKind::kConfig,
           cat("autoencoder argument ", key, " = '", given->second, "': expected a number"));
    }
    return value;
  }
  return config.contains(key) && config[key].is_number() ? config[key].get<double>() : fallback;
}

// Widths and counts as the tensors show them.
KlLayout layout_of(const ParameterSet& t, double groups, const std::string& where) {
  KlLayout l;
  l.widths.clear();
  const auto size = [&](const std::string& name, std::int64_t dimension) {
    if (!t.contains(name)) {
      fail(ErrorKind::kBadFile,
           cat(where, ": not an autoencoder tiltflow knows ('", name, "' is missing)"),
           "AutoencoderKL or AutoencoderTiny in the names of diffusers");
    }
    return t.at(name).size(dimension);
  };
  for (int i = 0; t.contains(cat("encoder.down_blocks.", i, ".resnets.0.conv1.weight")); ++i) {
    l.widths.push_back(size(cat("encoder.down_blocks.", i, ".resnets.0.conv1.weight"), 0));
  }
  l.latent = size("decoder.conv_in.weight", 1);
  l.in = size("encoder.conv_in.weight", 1);
  l.out = size("decoder.conv_out.weight", 0);
  if (l.widths.empty() || l.widths.size() > 16) {
    fail(ErrorKind::kBadFile, cat(where, ": an autoencoder with ", l.widths.size(), " stages"));
  }
  l.blocks = 0;
  while (t.contains(cat("encoder.down_blocks.0.resnets.", l.blocks, ".conv1.weight"))) ++l.blocks;
  l.quant = t.contains("quant_conv.weight");
  l.post_quant = t.contains("post_quant_conv.weight");
  l.mid_attention = t.contains("encoder.mid_block.attentions.0.group_norm.weight");
  if (!(groups >= 1) || groups != std::floor(groups) || groups > 4096) {
    fail(ErrorKind::kConfig, cat("norm_num_groups ", groups, " is not a positive whole number"));
  }
  l.groups = static_cast<std::int64_t>(groups);
  return l;
}

}  // namespace

std::shared_ptr<const Autoencoder> load_autoencoder(const std::filesystem::path& path,
                                                    const std::map<std::string, std::string>& args,
                                                    AutoencoderRuntime runtime,
                                                    at::ScalarType dtype) {
  for (const auto& [key, value] : args) {
    const std::vector<std::string> known{"scaling_factor", "shift_factor", "norm_num_groups"};
    if (std::find(known.begin(), known.end(), key) == known.end()) {
      fail(ErrorKind::kConfig,
           cat("an autoencoder has no argument '", key, "'", did_you_mean(key, known)),
           "known: " + join(known, ", "));
    }
  }
  std::filesystem::path folder = path;
  std::filesystem::path file = path;
  if (std::filesystem::is_directory(path)) {
    if (std::filesystem::exists(path / "model_index.json")) folder = path / "vae";
    file = find_weights(folder, {"diffusion_pytorch_model"});
  } else {
    folder = path.parent_path();
  }
  Json config;
  if (std::filesystem::exists(folder / "config.json")) {
    config = Json::parse(read_file(folder / "config.json", std::size_t{1} << 24), nullptr, false);
    if (!config.is_object()) {
      fail(ErrorKind::kBadFile, cat((folder / "config.json").string(), ": not a JSON object"));
    }
  }
  const TensorFile content = read_tensors(file);
  if (!content.tensors.contains("decoder.layers.0.weight") &&
      !content.tensors.contains("decoder.conv_in.weight")) {
    refuse_model(file, content, "an autoencoder",
                 "AutoencoderKL or AutoencoderTiny in the names of diffusers");
  }
  ParameterSet tensors;
  for (const auto& [name, tensor] : content.tensors) {
    tensors.add(name, to_compute_device(tensor.is_floating_point() ? tensor.to(dtype) : tensor));
  }
  for (const auto& [name, tensor] : tensors) {
    require_finite(tensor, cat(file.string(), ": tensor '", name, "'"));
  }
  const bool tiny = tensors.contains("decoder.layers.0.weight");
  std::shared_ptr<Autoencoder> out =
      tiny ? make_tiny(std::move(tensors), runtime, file.string())
           : make_kl(layout_of(tensors, number(args, config, "norm_num_groups", 32), file.string()),
                     tensors, runtime, file.string());
  out->scale = number(args, config, "scaling_factor", tiny ? 1.0 : 0.18215);
  out->shift = number(args, config, "shift_factor", 0);
  if (!(out->scale > 0)) {
    fail(ErrorKind::kConfig, cat("scaling_factor ", out->scale, " must be positive"));
  }
  return out;
}

void bind(Fields& f, AutoencoderConfig& c) {
  f.path("file", c.file, PathKind::kWeights,
         "autoencoder of a latent model: folder or file in the names of diffusers; empty = the "
         "model makes pixels");
  f.table("args", c.args, "override scaling_factor, shift_factor, norm_num_groups");
  f.value("precision", c.precision, "of its convolutions: fp32 or bf16", one_of({"fp32", "bf16"}));
  f.value("activation_checkpointing", c.activation_checkpointing,
          "recompute its blocks in backward: less memory, about one more forward");
  f.value("slice", c.slice, "samples decoded at a time; 0 = all", at_least_integer(0));
  f.value("tile", c.tile,
          "decode larger latents in overlapping tiles of this side; 0 = never (tiles are blended, "
          "not exact)",
          at_least_integer(0));
}

std::shared_ptr<const Autoencoder> load_autoencoder(const AutoencoderConfig& c) {
  return load_autoencoder(
      c.file, c.args, {parse_precision(c.precision), c.activation_checkpointing, c.slice, c.tile});
}

}  // namespace tiltflow
