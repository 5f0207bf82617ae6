// LoRA adapters as files and as changes of weights; how they are trained is in policy.h.
// A file holds PEFT's names: base_model.model.LAYER.lora_A.weight [r, in], ...lora_B.weight [out, r].
#pragma once

#include <filesystem>
#include <string>

#include "tiltflow/tensor/parameters.h"

namespace tiltflow {

// Adapters from PEFT-named tensors (the prefix "base_model.model." is optional). Throws kBadFile on stray names and shapes.
AdapterSet adapters_from(const ParameterSet& tensors, double scale);

// Writes adapters as safetensors with rank and alpha in the metadata; the scale is alpha / rank.
void write_adapters(const std::filesystem::path& path, const ParameterSet& trained, std::int64_t rank, double alpha);
// Reads such a file; `strength` multiplies the scale: 0 = base, 1 = as trained. Throws kBadFile.
AdapterSet read_adapters(const std::filesystem::path& path, double strength);

// weights + B A scale for every adapted layer. Throws kBadFile when an adapter fits no layer.
ParameterSet merge_adapters(const ParameterSet& weights, const AdapterSet& adapters);

}  // namespace tiltflow
