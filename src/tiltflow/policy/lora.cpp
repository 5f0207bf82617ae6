#include "tiltflow/policy/lora.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <regex>

#include "tiltflow/base/error.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/tensor_file.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {
constexpr std::string_view kPrefix = "base_model.model.", kA = ".lora_A.weight", kB = ".lora_B.weight", kWeight = ".weight";
constexpr const char *kTensors = "adapter_model.safetensors", *kConfig = "adapter_config.json";
}  // namespace

AdapterSet adapters_from(const ParameterSet& tensors, double scale) {
  AdapterSet out;
  for (const auto& [full_name, tensor] : tensors) {
    const std::string name = starts_with(full_name, kPrefix) ? full_name.substr(kPrefix.size()) : full_name;
    if (ends_with(name, kA)) out[name.substr(0, name.size() - kA.size())].a = tensor;
    else if (ends_with(name, kB)) out[name.substr(0, name.size() - kB.size())].b = tensor;
    else fail(ErrorKind::kBadFile, cat("'", full_name, "' is not a LoRA tensor"), "expected NAME.lora_A.weight and NAME.lora_B.weight");
  }
  for (auto& [layer, adapter] : out) {
    const bool fits = adapter.a.defined() && adapter.b.defined() && adapter.a.dim() == 2 && adapter.b.dim() == 2 && adapter.a.size(0) == adapter.b.size(1);
    if (!fits) fail(ErrorKind::kBadFile, cat("the LoRA tensors of '", layer, "' are incomplete or do not fit each other"));
    adapter.scale = scale;
  }
  return out;
}

void write_adapters(const std::filesystem::path& folder, const ParameterSet& trained, std::int64_t rank, double alpha) {
  ParameterSet named;
  nlohmann::ordered_json layers = nlohmann::ordered_json::array();
  for (const auto& [name, tensor] : trained) {
    named.add(cat(kPrefix, name), tensor);
    if (ends_with(name, kA)) layers.push_back(name.substr(0, name.size() - kA.size()));
  }
  const nlohmann::ordered_json config{{"peft_type", "LORA"}, {"task_type", nullptr}, {"base_model_name_or_path", nullptr}, {"inference_mode", true}, {"r", rank}, {"lora_alpha", alpha},
                                      {"lora_dropout", 0.0}, {"bias", "none"}, {"fan_in_fan_out", false}, {"use_rslora", false}, {"use_dora", false}, {"target_modules", layers}};
  make_directories(folder);
  write_safetensors(folder / kTensors, named, {{"format", "pt"}, {"rank", std::to_string(rank)}, {"lora_alpha", compact(alpha, 9)}});
  write_file_atomic(folder / kConfig, config.dump(2) + "\n");
}

namespace {

// PEFT's adapter_config.json: how every layer is scaled.
class PeftScale {
 public:
  explicit PeftScale(const std::filesystem::path& file) : where_(file.string()) {
    try {
      const nlohmann::json config = nlohmann::json::parse(read_file(file, std::size_t{1} << 24));
      if (config.value("peft_type", "LORA") != "LORA") fail(ErrorKind::kBadFile, cat(where_, ": peft_type ", config["peft_type"].dump(), " is not LORA"));
      for (const char* unsupported : {"use_dora", "fan_in_fan_out", "use_qalora", "lora_bias"}) if (config.contains(unsupported) && config[unsupported] == true) fail(ErrorKind::kBadFile, cat(where_, ": ", unsupported, " is not supported"), "merge the adapter with PEFT and load the merged model");
      alpha_ = config.at("lora_alpha").get<double>();
      root_ = config.value("use_rslora", false);
      if (config.contains("alpha_pattern")) patterns_ = config["alpha_pattern"].get<std::map<std::string, double>>();
    } catch (const nlohmann::json::exception& error) {
      fail(ErrorKind::kBadFile, cat(where_, ": not an adapter configuration: ", error.what()));
    }
    if (!(alpha_ > 0) || !std::isfinite(alpha_)) fail(ErrorKind::kBadFile, cat(where_, ": lora_alpha must be positive"));
  }
  double operator()(const std::string& layer, std::int64_t rank) const {
    double alpha = alpha_;
    for (const auto& [pattern, value] : patterns_) if (ends_like(layer, pattern)) { alpha = value; break; }
    return alpha / (root_ ? std::sqrt(static_cast<double>(rank)) : static_cast<double>(rank));
  }

 private:
  // Patterns are regular expressions for the end of a name. They come from a file and the matcher backtracks, so what could
  // take for ever is refused: more than two repetitions, or a repeated group.
  bool ends_like(const std::string& layer, const std::string& pattern) const {
    const auto repeats = [](char c) { return c == '*' || c == '+' || c == '?' || c == '{'; };
    bool hard = pattern.size() > 200 || layer.size() > 200 || std::count_if(pattern.begin(), pattern.end(), repeats) > 2;
    for (std::size_t i = 1; i < pattern.size(); ++i) hard = hard || (pattern[i - 1] == ')' && repeats(pattern[i]));
    if (hard) fail(ErrorKind::kBadFile, cat(where_, ": alpha_pattern '", pattern, "' is too complicated"), "merge the adapter with PEFT and load the merged model");
    try {
      return std::regex_match(layer, std::regex("(.*\\.)?(" + pattern + ")"));
    } catch (const std::regex_error&) {
      fail(ErrorKind::kBadFile, cat(where_, ": alpha_pattern '", pattern, "' is no regular expression"));
    }
  }
  std::string where_;
  double alpha_ = 1;
  bool root_ = false;
  std::map<std::string, double> patterns_;
};

}  // namespace

AdapterSet read_adapters(const std::filesystem::path& path, double strength) {
  std::filesystem::path tensors = path;
  if (std::filesystem::is_directory(path)) {
    tensors = path / kTensors;
    if (!std::filesystem::exists(tensors)) tensors = path / "adapter_model.bin";
  }
  const TensorFile file = read_tensors(tensors);
  const std::filesystem::path config = tensors.parent_path() / kConfig;
  if (tensors.stem() == "adapter_model" && std::filesystem::exists(config)) {
    const PeftScale scale(config);
    AdapterSet out = adapters_from(file.tensors, 1);
    for (auto& [layer, adapter] : out) adapter.scale = strength * scale(layer, adapter.a.size(0));
    return out;
  }
  const auto number = [&](const char* key) {
    const auto found = file.metadata.find(key);
    if (found == file.metadata.end()) fail(ErrorKind::kBadFile, cat(tensors.string(), ": neither metadata entry '", key, "' nor adapter_config.json beside it"), "give the folder that holds adapter_config.json and adapter_model.safetensors");
    const double value = std::atof(found->second.c_str());
    if (!(value > 0) || !std::isfinite(value)) fail(ErrorKind::kBadFile, cat(tensors.string(), ": metadata entry '", key, "' must be positive, found '", found->second, "'"));
    return value;
  };
  return adapters_from(file.tensors, strength * number("lora_alpha") / number("rank"));
}

ParameterSet merge_adapters(const ParameterSet& weights, const AdapterSet& adapters) {
  const at::NoGradGuard no_grad;
  for (const auto& [layer, adapter] : adapters) if (!weights.contains(layer + std::string(kWeight))) fail(ErrorKind::kBadFile, cat("LoRA layer '", layer, "' is not part of the model"));
  ParameterSet out;
  for (const auto& [name, tensor] : weights) {
    const auto found = ends_with(name, kWeight) ? adapters.find(name.substr(0, name.size() - kWeight.size())) : adapters.end();
    at::Tensor weight = tensor.detach();
    if (found != adapters.end()) {
      const LowRank& adapter = found->second;
      if (weight.dim() != 2 || adapter.b.size(0) != weight.size(0) || adapter.a.size(1) != weight.size(1)) fail(ErrorKind::kBadFile, cat("the LoRA tensors of '", name, "' do not fit the layer ", shape_text(weight.sizes())));
      weight = weight + (at::matmul(adapter.b, adapter.a) * adapter.scale).to(weight.options());
    }
    out.add(name, weight);
  }
  return out;
}

}  // namespace tiltflow
