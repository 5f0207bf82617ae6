// Models that this program does not read, recognised by the names of their tensors or by the
// configuration beside them, so that a message can say what a file is.
#pragma once

#include <filesystem>
#include <string>

#include "tiltflow/tensor/parameters.h"

namespace tiltflow {

// "a UNet of Stable Diffusion (UNet2DConditionModel)", or "" when the names say nothing.
std::string foreign_model(const ParameterSet& tensors);
// The same for networks that have all tensors of a SiT and are none.
std::string foreign_sit(const ParameterSet& tensors);
// `_class_name` or `architectures` of the config.json beside `file`, else of the model_index.json
// above: "a FluxTransformer2DModel (says config.json)", or "".
std::string configured_class(const std::filesystem::path& file);

}  // namespace tiltflow
