#include "tiltflow/models/sit/config.h"

#include <cctype>
#include <cmath>
#include <cstdlib>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"

namespace tiltflow {
namespace {

struct Size {
  const char* name;
  std::int64_t width, depth, heads;
};
constexpr Size kSizes[] = {
    {"S", 384, 12, 6}, {"B", 768, 12, 12}, {"L", 1024, 24, 16}, {"XL", 1152, 28, 16}};

std::int64_t parse_integer(const std::string& key, const std::string& text) {
  char* end = nullptr;
  const long long value = std::strtoll(text.c_str(), &end, 10);
  if (text.empty() || *end || value < 0 || value > (1 << 24)) {
    fail(ErrorKind::kConfig,
         cat("model argument ", key, " = '", text, "': expected an integer between 0 and 2^24"));
  }
  return value;
}

double parse_real(const std::string& key, const std::string& text) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (text.empty() || *end || !std::isfinite(value)) {
    fail(ErrorKind::kConfig, cat("model argument ", key, " = '", text, "': expected a number"));
  }
  return value;
}

bool parse_bool(const std::string& key, const std::string& text) {
  if (text == "true" || text == "True" || text == "1") return true;
  if (text == "false" || text == "False" || text == "0") return false;
  fail(ErrorKind::kConfig, cat("model argument ", key, " = '", text, "': expected true or false"));
}

}  // namespace

void validate(const SitConfig& c) {
  const auto bad = [](const std::string& why) { fail(ErrorKind::kConfig, "SiT: " + why); };
  if (c.input_size < 1 || c.patch_size < 1 || c.in_channels < 1 || c.hidden_size < 1 ||
      c.depth < 1 || c.num_heads < 1) {
    bad("sizes must be positive");
  }
  if (c.input_size % c.patch_size) {
    bad(cat("input_size ", c.input_size, " is not a multiple of patch_size ", c.patch_size));
  }
  if (c.hidden_size % c.num_heads) {
    bad(cat("hidden_size ", c.hidden_size, " is not a multiple of num_heads ", c.num_heads));
  }
  if (c.hidden_size % 4) {
    bad(cat("hidden_size ", c.hidden_size, " is not a multiple of 4 (position features)"));
  }
  if (!(c.mlp_ratio > 0)) bad("mlp_ratio must be positive");
}

SitConfig sit_preset(const std::string& name) {
  std::vector<std::string> known;
  for (const Size& size : kSizes) {
    for (const int patch : {2, 4, 8}) {
      known.push_back(cat("SiT-", size.name, "/", patch));
      if (known.back() == name) {
        SitConfig config;
        config.hidden_size = size.width;
        config.depth = size.depth;
        config.num_heads = size.heads;
        config.patch_size = patch;
        return config;
      }
    }
  }
  fail(ErrorKind::kConfig, cat("model size '", name, "' is unknown", did_you_mean(name, known)),
       "official sizes: " + join(known, ", "));
}

SitConfig sit_config_from_args(const std::map<std::string, std::string>& args, SitConfig config) {
  static const std::vector<std::string> kNames{
      "size",      "input_size", "patch_size",  "in_channels", "hidden_size",       "depth",
      "num_heads", "mlp_ratio",  "num_classes", "learn_sigma", "class_dropout_prob"};
  if (const auto size = args.find("size"); size != args.end()) {
    const SitConfig preset = sit_preset(size->second);
    config.hidden_size = preset.hidden_size;
    config.depth = preset.depth;
    config.num_heads = preset.num_heads;
    config.patch_size = preset.patch_size;
  }
  for (const auto& [key, text] : args) {
    if (key == "input_size") {
      config.input_size = parse_integer(key, text);
    } else if (key == "patch_size") {
      config.patch_size = parse_integer(key, text);
    } else if (key == "in_channels") {
      config.in_channels = parse_integer(key, text);
    } else if (key == "hidden_size") {
      config.hidden_size = parse_integer(key, text);
    } else if (key == "depth") {
      config.depth = parse_integer(key, text);
    } else if (key == "num_heads") {
      config.num_heads = parse_integer(key, text);
    } else if (key == "mlp_ratio") {
      config.mlp_ratio = parse_real(key, text);
    } else if (key == "num_classes") {
      config.num_classes = parse_integer(key, text);
    } else if (key == "learn_sigma") {
      config.learn_sigma = parse_bool(key, text);
    } else if (key == "class_dropout_prob") {
      config.null_class = parse_real(key, text) > 0;
    } else if (key != "size") {
      fail(ErrorKind::kConfig, cat("SiT has no argument '", key, "'", did_you_mean(key, kNames)),
           "known: " + join(kNames, ", "));
    }
  }
  validate(config);
  return config;
}

std::map<std::string, std::string> to_args(const SitConfig& c) {
  return {{"input_size", cat(c.input_size)},
          {"patch_size", cat(c.patch_size)},
          {"in_channels", cat(c.in_channels)},
          {"hidden_size", cat(c.hidden_size)},
          {"depth", cat(c.depth)},
          {"num_heads", cat(c.num_heads)},
          {"mlp_ratio", compact(c.mlp_ratio, 9)},
          {"num_classes", cat(c.num_classes)},
          {"learn_sigma", c.learn_sigma ? "true" : "false"},
          {"class_dropout_prob", c.null_class ? "0.1" : "0"}};
}

bool looks_like_sit(const ParameterSet& tensors) {
  return tensors.contains("x_embedder.proj.weight") &&
         tensors.contains("final_layer.linear.weight") && tensors.contains("pos_embed");
}

std::string official_sit_size(const std::string& text) {
  std::string word;
  for (const char c : text) {
    word +=
        c == '_' || c == '/' ? '-' : static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  }
  for (const Size& size : kSizes) {
    for (const int patch : {2, 4, 8}) {
      if (word == cat("SIT-", size.name, "-", patch)) return cat("SiT-", size.name, "/", patch);
    }
  }
  return "";
}

SitConfig shown_sit_config(const ParameterSet& tensors) {
  const auto bad = [](const std::string& why) {
    fail(ErrorKind::kBadFile, "SiT checkpoint: " + why);
  };
  const at::Tensor patch = tensors.at("x_embedder.proj.weight");
  const at::Tensor positions = tensors.at("pos_embed");
  const at::Tensor last = tensors.at("final_layer.linear.weight");
  if (patch.dim() != 4 || patch.size(2) != patch.size(3)) {
    bad("x_embedder.proj.weight is not [hidden, channels, patch, patch]");
  }
  if (positions.dim() != 3 || last.dim() != 2) {
    bad("pos_embed or final_layer.linear.weight has the wrong number of dimensions");
  }
  SitConfig c;
  c.hidden_size = patch.size(0);
  c.in_channels = patch.size(1);
  c.patch_size = patch.size(2);
  if (c.hidden_size < 1 || c.in_channels < 1 || c.patch_size < 1) {
    bad("x_embedder.proj.weight has an empty dimension");
  }
  const std::int64_t side = std::llround(std::sqrt(static_cast<double>(positions.size(1))));
  if (side * side != positions.size(1)) {
    bad(cat("pos_embed has ", positions.size(1), " tokens, not a square number"));
  }
  c.input_size = side * c.patch_size;
  c.depth = 0;
  while (tensors.contains(cat("blocks.", c.depth, ".attn.qkv.weight"))) ++c.depth;
  if (c.depth == 0) bad("has no transformer blocks: blocks.0.attn.qkv.weight is missing");
  c.mlp_ratio = static_cast<double>(tensors.at("blocks.0.mlp.fc1.weight").size(0)) /
                static_cast<double>(c.hidden_size);
  const std::int64_t rows = tensors.at("y_embedder.embedding_table.weight").size(0);
  c.null_class = true;
  c.num_classes = rows - 1;
  c.learn_sigma = last.size(0) == 2 * c.patch_size * c.patch_size * c.in_channels;
  c.num_heads = 0;
  for (const Size& size : kSizes) {
    if (size.width == c.hidden_size) c.num_heads = size.heads;
  }
  return c;
}

SitConfig infer_sit_config(const ParameterSet& tensors,
                           const std::map<std::string, std::string>& args) {
  SitConfig c = shown_sit_config(tensors);
  const std::int64_t rows = c.num_classes + 1;
  const bool heads_known = c.num_heads > 0 || args.count("num_heads") || args.count("size");
  if (!heads_known) c.num_heads = 1;
  c = sit_config_from_args(args, c);
  if (!heads_known) {
    fail(ErrorKind::kBadFile,
         cat("the number of attention heads does not show in the tensors (width ", c.hidden_size,
             ")"),
         "give it: --model-arg num_heads=N, or model.args.num_heads in a config");
  }
  if (c.num_classes == rows) {
    c.null_class = false;
  } else if (!c.null_class && !args.count("num_classes")) {
    c.num_classes = rows;
  }
  return c;
}

}  // namespace tiltflow
