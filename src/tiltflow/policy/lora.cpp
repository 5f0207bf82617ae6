#include "tiltflow/policy/lora.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "tiltflow/base/error.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/tensor_file.h"
#include "tiltflow/io/weight_files.h"
#include "tiltflow/policy/peft_config.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {
constexpr std::string_view kPrefix = "base_model.model.";
constexpr std::string_view kA = ".lora_A.weight";
constexpr std::string_view kB = ".lora_B.weight";
constexpr std::string_view kWeight = ".weight";
constexpr const char* kTensors = "adapter_model.safetensors";
constexpr const char* kConfig = "adapter_config.json";

// What the names of other adapters say.
struct Foreign {
  const char* part;
  const char* what;
};
constexpr Foreign kForeign[] = {
    {"lora_unet_", "a LoRA of kohya's trainer, for a UNet"},
    {"lora_te", "a LoRA of kohya's trainer, for a text encoder"},
    {".lora_down.", "a LoRA in kohya's names"},
    {".lora_up.", "a LoRA in kohya's names"},
    {".lora.down.", "a LoRA in the old names of diffusers"},
    {".lora.up.", "a LoRA in the old names of diffusers"},
    {"hada_w", "a LoHa adapter"},
    {"lokr_w", "a LoKr adapter"},
    {"lora_magnitude_vector", "a part of DoRA"},
    {"lora_embedding_", "the LoRA of an embedding"},
    {".lora_A.bias", "a bias of the adapter (lora_bias)"},
    {".lora_B.bias", "a bias of the adapter (lora_bias)"},
    {"base_layer", "a tensor of an unmerged PEFT model"},
    {"modules_to_save", "a module that was trained whole (modules_to_save)"},
    {".lora_A.", "of an adapter with a name: save it with save_pretrained"},
    {".lora_B.", "of an adapter with a name: save it with save_pretrained"},
};

[[noreturn]] void refuse_tensor(const std::string& name) {
  const auto* found = std::find_if(std::begin(kForeign), std::end(kForeign), [&](const Foreign& f) {
    return name.find(f.part) != std::string::npos;
  });
  const std::string what = found == std::end(kForeign)
                               ? "not a LoRA tensor"
                               : cat(found->what, ", not a LoRA tensor of PEFT");
  fail(ErrorKind::kBadFile, cat("'", name, "' is ", what),
       "expected NAME.lora_A.weight and NAME.lora_B.weight of the official SiT's layers");
}

// Half precision as fp32, as PEFT loads it: the product B A must not be rounded.
at::Tensor at_least_single(const at::Tensor& x) {
  const bool half = x.scalar_type() == at::kHalf || x.scalar_type() == at::kBFloat16;
  return half ? x.to(at::kFloat) : x;
}

}  // namespace

AdapterSet adapters_from(const ParameterSet& tensors, double scale) {
  AdapterSet out;
  if (tensors.empty()) fail(ErrorKind::kBadFile, "the adapter has no tensors");
  for (const auto& [full_name, tensor] : tensors) {
    const std::string name =
        starts_with(full_name, kPrefix) ? full_name.substr(kPrefix.size()) : full_name;
    if (ends_with(name, kA)) {
      out[name.substr(0, name.size() - kA.size())].a = tensor;
    } else if (ends_with(name, kB)) {
      out[name.substr(0, name.size() - kB.size())].b = tensor;
    } else {
      refuse_tensor(full_name);
    }
    if (tensor.dim() == 4) {
      fail(ErrorKind::kBadFile,
           cat("'", full_name, "' is the LoRA of a convolution ", shape_text(tensor.sizes())),
           "only linear layers are adapted here");
    }
  }
  for (auto& [layer, adapter] : out) {
    const bool fits = adapter.a.defined() && adapter.b.defined() && adapter.a.dim() == 2 &&
                      adapter.b.dim() == 2 && adapter.a.size(0) == adapter.b.size(1);
    const char* missing = !adapter.a.defined()   ? "lora_A is missing"
                          : !adapter.b.defined() ? "lora_B is missing"
                                                 : "they do not fit each other";
    if (!fits) {
      fail(ErrorKind::kBadFile, cat("the LoRA tensors of '", layer, "' are incomplete: ", missing));
    }
    adapter.scale = scale;
    adapter.a = at_least_single(adapter.a);
    adapter.b = at_least_single(adapter.b);
  }
  return out;
}

void write_adapters(const std::filesystem::path& folder, const ParameterSet& trained,
                    std::int64_t rank, double alpha) {
  ParameterSet named;
  nlohmann::ordered_json layers = nlohmann::ordered_json::array();
  for (const auto& [name, tensor] : trained) {
    named.add(cat(kPrefix, name), tensor);
    if (ends_with(name, kA)) layers.push_back(name.substr(0, name.size() - kA.size()));
  }
  const nlohmann::ordered_json config{{"peft_type", "LORA"},
                                      {"task_type", nullptr},
                                      {"base_model_name_or_path", nullptr},
                                      {"inference_mode", true},
                                      {"r", rank},
                                      {"lora_alpha", alpha},
                                      {"lora_dropout", 0.0},
                                      {"bias", "none"},
                                      {"fan_in_fan_out", false},
                                      {"use_rslora", false},
                                      {"use_dora", false},
                                      {"target_modules", layers}};
  make_directories(folder);
  write_safetensors(
      folder / kTensors, named,
      {{"format", "pt"}, {"rank", std::to_string(rank)}, {"lora_alpha", compact(alpha, 9)}});
  write_file_atomic(folder / kConfig, config.dump(2) + "\n");
}

AdapterSet read_adapters(const std::filesystem::path& path, double strength) {
  std::filesystem::path tensors = path;
  if (std::filesystem::is_directory(path)) {
    tensors = find_weights(path, {"adapter_model"});
  }
  const TensorFile file = read_tensors(tensors);
  const std::filesystem::path config = tensors.parent_path() / kConfig;
  if (tensors.stem() == "adapter_model" && std::filesystem::exists(config)) {
    const PeftConfig peft(config);
    AdapterSet out = adapters_from(file.tensors, 1);
    for (auto& [layer, adapter] : out) {
      adapter.scale = strength * peft.scale(layer, adapter.a.size(0));
    }
    return out;
  }
  const auto number = [&](const char* key) {
    const auto found = file.metadata.find(key);
    if (found == file.metadata.end()) {
      fail(ErrorKind::kBadFile,
           cat(tensors.string(), ": neither metadata entry '", key,
               "' nor adapter_config.json beside it"),
           "give the folder that holds adapter_config.json and adapter_model.safetensors");
    }
    const double value = std::atof(found->second.c_str());
    if (!(value > 0) || !std::isfinite(value)) {
      fail(ErrorKind::kBadFile, cat(tensors.string(), ": metadata entry '", key,
                                    "' must be positive, found '", found->second, "'"));
    }
    return value;
  };
  return adapters_from(file.tensors, strength * number("lora_alpha") / number("rank"));
}

ParameterSet merge_adapters(const ParameterSet& weights, const AdapterSet& adapters) {
  const at::NoGradGuard no_grad;
  for (const auto& [layer, adapter] : adapters) {
    if (!weights.contains(layer + std::string(kWeight))) {
      fail(ErrorKind::kBadFile, cat("LoRA layer '", layer, "' is not part of the model"));
    }
  }
  ParameterSet out;
  for (const auto& [name, tensor] : weights) {
    const auto found = ends_with(name, kWeight)
                           ? adapters.find(name.substr(0, name.size() - kWeight.size()))
                           : adapters.end();
    at::Tensor weight = tensor.detach();
    if (found != adapters.end()) {
      const LowRank& adapter = found->second;
      if (weight.dim() != 2 || adapter.b.size(0) != weight.size(0) ||
          adapter.a.size(1) != weight.size(1)) {
        fail(ErrorKind::kBadFile, cat("the LoRA tensors of '", name, "' do not fit the layer ",
                                      shape_text(weight.sizes())));
      }
      weight = weight + (at::matmul(adapter.b, adapter.a) * adapter.scale).to(weight.options());
    }
    out.add(name, weight);
  }
  return out;
}

}  // namespace tiltflow
