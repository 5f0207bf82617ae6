// Where the weights are in a folder of diffusers, transformers or PEFT.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace tiltflow {

// The file of weights in `folder`, given the names they may have without endings
// ("diffusion_pytorch_model"). In this order: STEM.safetensors, its index, STEM.bin, its index;
// then the same with the name of a variant (STEM.fp16.safetensors,
// STEM.safetensors.index.fp16.json), of which fp32, fp16 and bf16 are taken in this order, and
// said. Other variants (non_ema, ...) must be named by the user. Throws kBadFile: what was looked
// for and what the folder has.
std::filesystem::path find_weights(const std::filesystem::path& folder,
                                   const std::vector<std::string>& stems);

}  // namespace tiltflow
