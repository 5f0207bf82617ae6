#include "tiltflow/policy/lora.h"

#include <cmath>
#include <cstdlib>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/safetensors.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {
constexpr std::string_view kPrefix = "base_model.model.", kA = ".lora_A.weight", kB = ".lora_B.weight", kWeight = ".weight";
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

void write_adapters(const std::filesystem::path& path, const ParameterSet& trained, std::int64_t rank, double alpha) {
  ParameterSet named;
  for (const auto& [name, tensor] : trained) named.add(cat(kPrefix, name), tensor);
  write_safetensors(path, named, {{"format", "pt"}, {"rank", std::to_string(rank)}, {"lora_alpha", compact(alpha, 9)}});
}

AdapterSet read_adapters(const std::filesystem::path& path, double strength) {
  const TensorFile file = read_safetensors(path);
  const auto number = [&](const char* key) {
    const auto found = file.metadata.find(key);
    if (found == file.metadata.end()) fail(ErrorKind::kBadFile, cat(path.string(), ": metadata entry '", key, "' is missing"), "is this an adapter.safetensors of `tiltflow finetune`?");
    const double value = std::atof(found->second.c_str());
    if (!(value > 0) || !std::isfinite(value)) fail(ErrorKind::kBadFile, cat(path.string(), ": metadata entry '", key, "' must be positive, found '", found->second, "'"));
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
      weight = weight + (at::matmul(adapter.b, adapter.a) * adapter.scale).to(weight.scalar_type());
    }
    out.add(name, weight);
  }
  return out;
}

}  // namespace tiltflow
