#include "tiltflow/models/foreign_model.h"
#include "tests/models/tiny_sit.h"
#include "tests/support.h"
#include "tiltflow/models/autoencoder/autoencoder.h"
#include "tiltflow/models/flow_model.h"
#include "tiltflow/models/sit/sit.h"

namespace tiltflow {
namespace {

using test::tiny_sit_config;

ParameterSet named(const std::vector<std::string>& names) {
  ParameterSet out;
  for (const std::string& name : names) out.add(name, at::zeros({2, 2}));
  return out;
}

}  // namespace

// A checkpoint of Lightning: the network beside a loss.
TEST(models_foreign_model, ANetworkBesideOtherModulesIsTakenByName) {
  const test::TempDir dir;
  ParameterSet both;
  for (const auto& [name, tensor] : init_sit(tiny_sit_config(), RandomStreams(3))) {
    both.add("vector_field." + name, tensor);
  }
  both.add("loss.weight", at::zeros({1}));
  write_safetensors(dir / "m.safetensors", both, {{"args.num_heads", "4"}});
  FlowModelConfig config;
  config.file = (dir / "m.safetensors").string();
  test::expect_error(ErrorKind::kBadFile, "a SiT lies under 'vector_field.'",
                     [&] { load_flow_model(config); });
  config.weights = "vector_field";
  EXPECT_EQ(load_flow_model(config).model->spec().args.at("num_heads"), "4");
}

TEST(models_foreign_model, ArchitecturesAreNamed) {
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases{
      {{"conv_in.weight", "time_embedding.linear_1.weight",
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"},
       "UNet2DConditionModel"},
      {{"add_embedding.linear_1.weight", "down_blocks.0.resnets.0.conv1.weight"},
       "Stable Diffusion XL"},
      {{"transformer_blocks.0.attn.add_q_proj.weight", "pos_embed.proj.weight"},
       "SD3Transformer2DModel"},
      {{"joint_blocks.0.x_block.attn.qkv.weight"}, "Stable Diffusion 3"},
      {{"double_blocks.0.img_attn.qkv.weight", "single_blocks.0.linear1.weight"}, "FLUX"},
      {{"transformer_blocks.0.attn.add_q_proj.weight",
        "single_transformer_blocks.0.attn.to_q.weight"},
       "FLUX"},
      {{"adaln_single.linear.weight", "caption_projection.linear_1.weight"}, "PixArt"},
      {{"model.diffusion_model.input_blocks.0.0.weight",
        "first_stage_model.encoder.conv_in.weight"},
       "whole Stable Diffusion"},
      {{"controlnet_cond_embedding.conv_in.weight"}, "ControlNet"},
      {{"lora_unet_down_blocks_0.lora_down.weight", "lora_unet_down_blocks_0.alpha"}, "kohya"},
      {{"unet.down_blocks.0.lora.down.weight"}, "diffusers"},
      {{"blocks.0.attn.qkv.lora_A.weight"}, "LoRA adapter"},
      {{"blocks.0.attn.qkv.base_layer.weight", "blocks.0.attn.qkv.lora_A.default.weight"},
       "unmerged PEFT"},
      {{"layers.0.weight.absmax"}, "bitsandbytes"},
      {{"text_model.encoder.layers.0.mlp.fc1.weight"}, "CLIP text encoder"},
      {{"emb_params"}, "textual inversion"},
      {{"x_embedder.proj.weight", "final_layer.linear.weight", "pos_embed",
        "projectors.0.0.weight"},
       "REPA"},
      {{"something.else"}, ""}};
  for (const auto& [names, what] : cases) {
    const std::string found = model_family(named(names), {});
    if (what.empty()) {
      EXPECT_EQ(found, "");
    } else {
      EXPECT_NE(found.find(what), std::string::npos) << found << " for " << names[0];
    }
  }
}

TEST(models_foreign_model, MessagesSayWhatTheFileHoldsAndWhatIsTaken) {
  const test::TempDir dir;
  write_safetensors(dir / "flux.safetensors", named({"double_blocks.0.img_attn.qkv.weight",
                                                     "single_blocks.0.linear1.weight"}));
  test::expect_error(ErrorKind::kBadFile, "holds a FLUX transformer, not a velocity model",
                     [&] { load_velocity_model(dir / "flux.safetensors"); });
  test::expect_error(ErrorKind::kBadFile, "holds a FLUX transformer, not an autoencoder",
                     [&] { load_autoencoder(dir / "flux.safetensors"); });
  test::expect_error(ErrorKind::kBadFile, "holds a FLUX transformer, not a classifier",
                     [&] { load_classifier(dir / "flux.safetensors"); });
  write_safetensors(dir / "x.safetensors", named({"odd.weight"}));
  test::expect_error(ErrorKind::kBadFile, "not a model tiltflow knows",
                     [&] { load_velocity_model(dir / "x.safetensors"); });
  write_file_atomic(dir / "config.json", R"({"_class_name": "Kandinsky3UNet"})");
  test::expect_error(ErrorKind::kBadFile, "holds a Kandinsky3UNet (says config.json)",
                     [&] { load_velocity_model(dir / "x.safetensors"); });
}

// The half-precision variant of a published autoencoder is that autoencoder.
TEST(models_foreign_model, VariantsOfDiffusersAreFound) {
  const test::TempDir dir;
  const std::filesystem::path source = test::source_dir() / "tests/golden/diffusers/taesd";
  std::filesystem::copy(source / "config.json", dir / "config.json");
  std::filesystem::copy(source / "diffusion_pytorch_model.safetensors",
                        dir / "diffusion_pytorch_model.fp16.safetensors");
  EXPECT_EQ(load_autoencoder(dir.path())->latent_channels(),
            load_autoencoder(source)->latent_channels());
}

}  // namespace tiltflow
