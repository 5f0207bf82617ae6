#include "tiltflow/models/foreign_model.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "tiltflow/base/file.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

struct Signature {
  const char* first;  // patterns of names that must occur, "" for none
  const char* second;
  const char* what;
};

// The first that fits counts: adapters and quantised weights before networks, parts of a network
// before the whole.
constexpr Signature kSignatures[] = {
    {"*.base_layer.weight", "*lora_A*",
     "an unmerged PEFT model (merge it in Python: model.merge_and_unload())"},
    {"lora_unet_*", "", "a LoRA for a UNet in kohya's names"},
    {"lora_te*", "", "a LoRA for a text encoder in kohya's names"},
    {"*.hada_w1_a", "", "a LoHa adapter (LyCORIS)"},
    {"*.lokr_w*", "", "a LoKr adapter (LyCORIS)"},
    {"*lora_down.weight", "", "a LoRA in kohya's names"},
    {"*.lora.down.weight", "", "a LoRA in the old names of diffusers"},
    {"*lora_A*", "", "a LoRA adapter (give it as an adapter beside its base model)"},
    {"*.quant_state.bitsandbytes__*", "", "a model quantised by bitsandbytes"},
    {"*.weight.absmax", "", "a model quantised by bitsandbytes"},
    {"*.SCB", "", "a model quantised by bitsandbytes"},
    {"*.qweight", "*.scales", "a model quantised by GPTQ or AWQ"},
    {"*.scale_weight", "", "a model quantised to 8-bit floats"},
    {"*joint_blocks.*.x_block.*", "", "a Stable Diffusion 3 transformer (MMDiT)"},
    {"*double_blocks.*.img_attn.*", "*single_blocks.*", "a FLUX transformer"},
    {"model.diffusion_model.*", "first_stage_model.*",
     "a whole Stable Diffusion checkpoint (UNet, autoencoder, text encoder)"},
    {"model.diffusion_model.*", "conditioner.*", "a whole Stable Diffusion XL checkpoint"},
    {"controlnet_*", "", "a ControlNet"},
    {"control_model.*", "", "a ControlNet"},
    {"*transformer_blocks.*.attn.add_q_proj.weight", "single_transformer_blocks.*",
     "a FLUX transformer (FluxTransformer2DModel)"},
    {"*transformer_blocks.*.attn.add_q_proj.weight", "",
     "a Stable Diffusion 3 transformer (SD3Transformer2DModel)"},
    {"transformer_blocks.*.norm1.emb.timestep_embedder.*", "",
     "a DiT in the names of diffusers (DiTTransformer2DModel)"},
    {"adaln_single.*", "caption_projection.*", "a PixArt transformer (PixArtTransformer2DModel)"},
    {"t_block.1.weight", "*.cross_attn.*", "a PixArt transformer"},
    {"add_embedding.linear_1.weight", "down_blocks.*",
     "a UNet of Stable Diffusion XL (UNet2DConditionModel)"},
    {"down_blocks.*.attn2.to_k.weight", "time_embedding.*",
     "a UNet of Stable Diffusion (UNet2DConditionModel)"},
    {"down_blocks.*", "time_embedding.*", "a UNet (UNet2DModel)"},
    {"*input_blocks.0.0.weight", "*middle_block.*", "a UNet in the names of OpenAI and CompVis"},
    {"*enc.*_conv.weight", "*map_layer0.weight", "a UNet of EDM"},
    {"*map_noise.*", "*map_layer0.weight", "a UNet of EDM"},
    {"in_blocks.*", "mid_block.*", "a U-ViT"},
    {"encoder.down.*", "decoder.up.*",
     "an autoencoder in the names of CompVis (convert it to those of diffusers)"},
    {"first_stage_model.*", "",
     "an autoencoder in the names of CompVis (convert it to those of diffusers)"},
    {"encoder.block.*.SelfAttention.*", "", "a T5 text encoder"},
    {"text_model.encoder.*", "", "a CLIP text encoder"},
    {"*layers.*.self_attn.q_proj.weight", "*embed_tokens.weight", "a language model"},
    {"string_to_param.*", "", "a textual inversion embedding"},
    {"emb_params", "", "a textual inversion embedding"},
    {"*image_proj*", "*ip_adapter*", "an IP-Adapter"},
    {"cls_token", "*blocks.0.attn.qkv.weight", "a vision transformer"},
    {"conv1.weight", "layer1.0.conv1.weight", "a ResNet"},
};

bool any_like(const ParameterSet& tensors, std::string_view pattern) {
  return std::any_of(tensors.begin(), tensors.end(),
                     [&](const auto& item) { return matches_pattern(item.first, pattern); });
}

std::string class_in(const std::filesystem::path& file) {
  if (!std::filesystem::exists(file)) return "";
  const nlohmann::json config =
      nlohmann::json::parse(read_file(file, std::size_t{1} << 24), nullptr, false);
  if (!config.is_object()) return "";
  nlohmann::json name = config.value("_class_name", nlohmann::json());
  if (!name.is_string() && config.contains("architectures") && config["architectures"].is_array() &&
      !config["architectures"].empty()) {
    name = config["architectures"][0];
  }
  return name.is_string()
             ? cat("a ", name.get<std::string>(), " (says ", file.filename().string(), ")")
             : "";
}

}  // namespace

std::string foreign_sit(const ParameterSet& tensors) {
  if (!tensors.contains("x_embedder.proj.weight") ||
      !tensors.contains("final_layer.linear.weight")) {
    return "";
  }
  if (any_like(tensors, "projectors.*")) {
    return "a SiT trained with REPA, whose time runs from data to noise";
  }
  if (any_like(tensors, "blocks.*.mlp.w12.weight")) return "a LightningDiT (SwiGLU layers)";
  if (any_like(tensors, "blocks.*.attn.q_norm.weight")) {
    return "a transformer like SiT with normalised queries and keys";
  }
  if (any_like(tensors, "blocks.*.cross_attn.*")) {
    return "a transformer like SiT with cross-attention (PixArt)";
  }
  if (any_like(tensors, "context_embedder.*")) return "a Stable Diffusion 3 transformer (MMDiT)";
  return "";
}

std::string foreign_model(const ParameterSet& tensors) {
  for (const Signature& s : kSignatures) {
    if (any_like(tensors, s.first) && (*s.second == 0 || any_like(tensors, s.second))) {
      return s.what;
    }
  }
  return "";
}

std::string configured_class(const std::filesystem::path& file) {
  const std::filesystem::path folder = file.parent_path();
  const std::string beside = class_in(folder / "config.json");
  return beside.empty() ? class_in(folder / ".." / "model_index.json") : beside;
}

}  // namespace tiltflow
