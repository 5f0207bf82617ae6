// LoRA adapters as files and as changes of weights; how they are trained is in policy.h.
// Tensors have PEFT's names: base_model.model.LAYER.lora_A.weight [r, in], ...lora_B.weight [out,
// r].
#pragma once

#include <filesystem>
#include <string>

#include "tiltflow/tensor/parameters.h"

namespace tiltflow {

// Adapters from PEFT-named tensors (the prefix "base_model.model." is optional). Throws kBadFile on
// stray names and shapes.
AdapterSet adapters_from(const ParameterSet& tensors, double scale);

// A folder as PEFT writes it: adapter_model.safetensors and adapter_config.json; the scale is alpha
// / rank.
void write_adapters(const std::filesystem::path& folder, const ParameterSet& trained,
                    std::int64_t rank, double alpha);
// Such a folder (options: peft_config.h), or a tensor file beside its configuration or with rank
// and lora_alpha in the metadata; `strength` multiplies the scale: 0 = base, 1 = as trained. Throws
// kBadFile, also for DoRA and others.
AdapterSet read_adapters(const std::filesystem::path& path, double strength);

// weights + B A scale for every adapted layer. Throws kBadFile when an adapter fits no layer.
ParameterSet merge_adapters(const ParameterSet& weights, const AdapterSet& adapters);

}  // namespace tiltflow
