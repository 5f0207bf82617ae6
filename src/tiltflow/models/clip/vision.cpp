#include "tiltflow/models/clip/vision.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "tiltflow/base/error.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/tensor_file.h"
#include "tiltflow/io/weight_files.h"
#include "tiltflow/models/model_file.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/tensor/device.h"

namespace tiltflow {
namespace {

constexpr double kMean[3] = {0.48145466, 0.4578275, 0.40821073};
constexpr double kDeviation[3] = {0.26862954, 0.26130258, 0.27577711};
constexpr double kLayerNormEpsilon = 1e-5;
const std::string kTower = "vision_model.";

ParameterSet expected_tensors(const ClipVisionConfig& c) {
  ParameterSet out;
  const auto meta = [](at::IntArrayRef shape) { return at::empty({1}).expand(shape); };
  const auto pair = [&](const std::string& name, std::int64_t rows, std::int64_t in = 0) {
    out.add(name + ".weight", in ? meta({rows, in}) : meta({rows}));
    out.add(name + ".bias", meta({rows}));
  };
  const std::int64_t side = c.image_size / c.patch;
  out.add(kTower + "embeddings.class_embedding", meta({c.width}));
  out.add(kTower + "embeddings.patch_embedding.weight", meta({c.width, 3, c.patch, c.patch}));
  out.add(kTower + "embeddings.position_embedding.weight", meta({side * side + 1, c.width}));
  pair(kTower + "pre_layrnorm", c.width);
  pair(kTower + "post_layernorm", c.width);
  for (std::int64_t i = 0; i < c.layers; ++i) {
    const std::string name = cat(kTower, "encoder.layers.", i, ".");
    pair(name + "layer_norm1", c.width);
    pair(name + "layer_norm2", c.width);
    for (const char* part : {"q_proj", "k_proj", "v_proj", "out_proj"}) {
      pair(cat(name, "self_attn.", part), c.width, c.width);
    }
    pair(name + "mlp.fc1", c.mlp, c.width);
    pair(name + "mlp.fc2", c.width, c.mlp);
  }
  out.add("visual_projection.weight", meta({c.projection, c.width}));
  return out;
}

// Old names and what Hugging Face calls them.
using Renames = std::vector<std::pair<std::string, std::string>>;

const Renames& openai_tower() {
  static const Renames names{{"class_embedding", "embeddings.class_embedding"},
                             {"positional_embedding", "embeddings.position_embedding.weight"},
                             {"conv1.weight", "embeddings.patch_embedding.weight"},
                             {"ln_pre.weight", "pre_layrnorm.weight"},
                             {"ln_pre.bias", "pre_layrnorm.bias"},
                             {"ln_post.weight", "post_layernorm.weight"},
                             {"ln_post.bias", "post_layernorm.bias"}};
  return names;
}

// Beginnings of the names inside a block.
const Renames& openai_block() {
  static const Renames names{{"attn.out_proj.", "self_attn.out_proj."},
                             {"ln_1.", "layer_norm1."},
                             {"ln_2.", "layer_norm2."},
                             {"mlp.c_fc.", "mlp.fc1."},
                             {"mlp.c_proj.", "mlp.fc2."}};
  return names;
}

// Tensors by Hugging Face's names, in fp32 on the compute device.
struct RenamedTensors {
  ParameterSet out;

  void add(const std::string& name, const at::Tensor& tensor) {
    out.add(name, to_compute_device(tensor.to(at::kFloat)));
  }

  // `rest`: what stands behind "visual.transformer.resblocks.".
  void add_block(const std::string& rest, const at::Tensor& tensor) {
    const std::string index = rest.substr(0, rest.find('.'));
    const std::string part = rest.substr(std::min(rest.size(), index.size() + 1));
    const std::string target = cat(kTower, "encoder.layers.", index, ".");
    if (starts_with(part, "attn.in_proj_")) {
      const std::vector<at::Tensor> qkv = tensor.chunk(3, 0);
      const char* const names[3] = {"q_proj", "k_proj", "v_proj"};
      for (std::size_t j = 0; qkv.size() == 3 && j < 3; ++j) {
        add(cat(target, "self_attn.", names[j], ".", part.substr(13)), qkv[j]);
      }
      return;
    }
    for (const auto& [old, now] : openai_block()) {
      if (starts_with(part, old)) add(target + now + part.substr(old.size()), tensor);
    }
  }

  void add_openai(const ParameterSet& file) {
    const std::string visual = "visual.";
    const std::string blocks = "visual.transformer.resblocks.";
    for (const auto& [name, tensor] : file) {
      if (!starts_with(name, visual)) continue;
      if (name == "visual.proj") {
        add("visual_projection.weight", tensor.t());
      } else if (starts_with(name, blocks)) {
        add_block(name.substr(blocks.size()), tensor);
      } else {
        for (const auto& [old, now] : openai_tower()) {
          if (name == visual + old) add(kTower + now, tensor);
        }
      }
    }
  }

  void add_hugging_face(const ParameterSet& file) {
    const bool bare =
        file.contains("embeddings.patch_embedding.weight");  // newer files leave the prefix out
    for (const auto& [name, tensor] : file) {
      if (ends_with(name, "position_ids")) continue;
      if (starts_with(name, kTower) || name == "visual_projection.weight") {
        add(name, tensor);
      } else if (bare) {
        add(kTower + name, tensor);
      }
    }
  }
};

// The image tower of any of the known files, by Hugging Face's names; tensors of the text tower are
// left out.
ParameterSet vision_tensors(const ParameterSet& file) {
  RenamedTensors renamed;
  if (file.contains("visual.class_embedding")) {
    renamed.add_openai(file);
  } else {
    renamed.add_hugging_face(file);
  }
  return std::move(renamed.out);
}

at::Tensor norm(const ParameterSet& p, const std::string& name, const at::Tensor& x) {
  return at::layer_norm(x, {x.size(-1)}, p.at(name + ".weight"), p.at(name + ".bias"),
                        kLayerNormEpsilon);
}

}  // namespace

ClipVision::ClipVision(ClipVisionConfig config, ParameterSet parameters, const std::string& where,
                       MatmulPrecision precision)
    : config_(std::move(config)), p_(std::move(parameters)), precision_(precision) {
  if (config_.heads < 1 || config_.width % config_.heads != 0) {
    fail(ErrorKind::kConfig,
         cat(where, ": ", config_.width, " channels do not divide into ", config_.heads, " heads"),
         "give num_heads");
  }
  if (config_.activation != "quick_gelu" && config_.activation != "gelu") {
    fail(ErrorKind::kConfig, cat(where, ": activation '", config_.activation, "' is unknown"),
         "quick_gelu or gelu");
  }
  require_fit(expected_tensors(config_), p_, where);
}

at::Tensor ClipVision::layer(std::int64_t i, const at::Tensor& input) const {
  const std::string name = cat(kTower, "encoder.layers.", i, ".");
  const auto linear = [&](const std::string& part, const at::Tensor& x) {
    return linear_in(precision_, x, p_.at(name + part + ".weight"), p_.at(name + part + ".bias"));
  };
  const std::int64_t n = input.size(0);
  const std::int64_t tokens = input.size(1);
  const std::int64_t head = config_.width / config_.heads;
  const at::Tensor h = norm(p_, name + "layer_norm1", input);
  const auto split = [&](const char* part) {
    return linear(cat("self_attn.", part), h)
        .view({n, tokens, config_.heads, head})
        .transpose(1, 2);
  };
  const at::Tensor mixed =
      at::scaled_dot_product_attention(split("q_proj"), split("k_proj"), split("v_proj"));
  const at::Tensor x = input + linear("self_attn.out_proj",
                                      mixed.transpose(1, 2).reshape({n, tokens, config_.width}));
  const at::Tensor wide = linear("mlp.fc1", norm(p_, name + "layer_norm2", x));
  return x + linear("mlp.fc2", config_.activation == "gelu" ? at::gelu(wide)
                                                            : wide * (wide * 1.702).sigmoid());
}

at::Tensor ClipVision::embed(const at::Tensor& pixels) const {
  if (pixels.dim() != 4 || pixels.size(1) != 3 || pixels.size(2) != config_.image_size ||
      pixels.size(3) != config_.image_size) {
    fail(ErrorKind::kConfig, cat("CLIP takes 3 x ", config_.image_size, " x ", config_.image_size,
                                 " pixels, not ", shape_text(pixels.sizes())));
  }
  const at::Tensor patches =
      at::conv2d(on_device_of(p_.at("visual_projection.weight"), pixels),
                 p_.at(kTower + "embeddings.patch_embedding.weight"), {}, config_.patch)
          .flatten(2)
          .transpose(1, 2);
  const at::Tensor first =
      p_.at(kTower + "embeddings.class_embedding").expand({pixels.size(0), 1, config_.width});
  at::Tensor x =
      at::cat({first, patches}, 1) + p_.at(kTower + "embeddings.position_embedding.weight");
  x = norm(p_, kTower + "pre_layrnorm", x);
  for (std::int64_t i = 0; i < config_.layers; ++i) x = layer(i, x);
  return on_device_of(pixels, at::linear(norm(p_, kTower + "post_layernorm", x.select(1, 0)),
                                         p_.at("visual_projection.weight")));
}

at::Tensor ClipVision::embed_images(const at::Tensor& images) const {
  return on_device_of(images,
                      embed(clip_preprocess(on_device_of(p_.at("visual_projection.weight"), images),
                                            config_.image_size)));
}

at::Tensor clip_preprocess(const at::Tensor& images, std::int64_t size) {
  at::Tensor x = images.size(1) == 1 ? images.expand({-1, 3, -1, -1}) : images;
  const std::int64_t height = x.size(2);
  const std::int64_t width = x.size(3);
  const std::int64_t small = std::min(height, width);
  const std::int64_t large = std::max(height, width);
  if (small != size) {
    const std::int64_t grown = size * large / small;
    const std::vector<std::int64_t> to =
        height <= width ? std::vector{size, grown} : std::vector{grown, size};
    x = at::_upsample_bicubic2d_aa(x, to, /*align_corners=*/false, {}, {});
  }
  const auto offset = [&](std::int64_t extent) {
    return static_cast<std::int64_t>(std::nearbyint(static_cast<double>(extent - size) / 2));
  };  // half to even
  x = x.narrow(2, offset(x.size(2)), size).narrow(3, offset(x.size(3)), size);
  const auto row = [&](const double* values) {
    return at::tensor(std::vector<double>(values, values + 3), at::kDouble)
        .to(x.options())
        .view({1, 3, 1, 1});
  };
  return (x - row(kMean)) / row(kDeviation);
}

namespace {

void refuse_unknown_arguments(const std::map<std::string, std::string>& args) {
  for (const auto& [key, value] : args) {
    if (key != "num_heads" && key != "activation") {
      fail(ErrorKind::kConfig,
           cat("CLIP has no argument '", key, "'", did_you_mean(key, {"num_heads", "activation"})),
           "known: num_heads, activation");
    }
  }
}

// Sizes that the tensors tell.
ClipVisionConfig config_of(const ParameterSet& tensors, const std::string& where) {
  const auto tensor = [&](const std::string& name, std::int64_t dim) {
    if (!tensors.contains(name) || tensors.at(name).dim() != dim) {
      fail(ErrorKind::kBadFile, cat(where, ": no CLIP image tower ('", name, "' is missing)"),
           "Hugging Face, OpenAI and open_clip names are known");
    }
    return tensors.at(name);
  };
  ClipVisionConfig c;
  const at::Tensor patch = tensor(kTower + "embeddings.patch_embedding.weight", 4);
  c.width = patch.size(0);
  c.patch = patch.size(2);
  const auto side = static_cast<std::int64_t>(std::llround(std::sqrt(static_cast<double>(
      tensor(kTower + "embeddings.position_embedding.weight", 2).size(0) - 1))));
  c.image_size = side * c.patch;
  c.projection = tensor("visual_projection.weight", 2).size(0);
  c.layers = 0;
  while (tensors.contains(cat(kTower, "encoder.layers.", c.layers, ".layer_norm1.weight"))) {
    ++c.layers;
  }
  c.mlp = tensor(kTower + "encoder.layers.0.mlp.fc1.weight", 2).size(0);
  c.heads = std::max<std::int64_t>(1, c.width / 64);
  return c;
}

// What a published configuration beside the file tells. Keys that it leaves out take the library's
// defaults, 12 heads and quick_gelu.
void follow_published_config(const std::filesystem::path& file, ClipVisionConfig& c) {
  const std::filesystem::path beside = file.parent_path() / "config.json";
  const std::string name = file.filename().string();
  const bool published =
      starts_with(name, "model.") ||
      starts_with(name, "pytorch_model.");  // with the name of a variant, or none
  if (!published || !std::filesystem::exists(beside)) return;
  nlohmann::json config =
      nlohmann::json::parse(read_file(beside, std::size_t{1} << 24), nullptr, false);
  if (config.is_object() && config.contains("vision_config")) config = config["vision_config"];
  if (!config.is_object()) {
    fail(ErrorKind::kBadFile, cat(beside.string(), ": not a CLIP configuration"));
  }
  c.heads = config.value("num_attention_heads", std::int64_t{12});
  c.activation = config.value("hidden_act", "quick_gelu");
}

}  // namespace

std::shared_ptr<const ClipVision> load_clip_vision(const std::filesystem::path& path,
                                                   const std::map<std::string, std::string>& args,
                                                   MatmulPrecision precision) {
  refuse_unknown_arguments(args);
  std::filesystem::path file = path;
  if (std::filesystem::is_directory(path)) {
    file = find_weights(path,
                        {"model", "pytorch_model", "open_clip_model", "open_clip_pytorch_model"});
  }
  const std::string where = file.string();
  const TensorFile content = read_tensors(file);
  const ParameterSet tensors = vision_tensors(content.tensors);
  if (tensors.empty()) {
    refuse_model(file, content, "a CLIP image tower",
                 "names of Hugging Face, OpenAI and open_clip are known");
  }
  for (const auto& [name, tensor] : tensors) {
    require_finite(tensor, cat(where, ": tensor '", name, "'"));
  }
  ClipVisionConfig c = config_of(tensors, where);
  follow_published_config(file, c);
  if (const auto found = args.find("num_heads"); found != args.end()) {
    c.heads = std::strtoll(found->second.c_str(), nullptr, 10);
  }
  if (const auto found = args.find("activation"); found != args.end()) c.activation = found->second;
  return std::make_shared<ClipVision>(c, tensors, where, precision);
}

}  // namespace tiltflow
