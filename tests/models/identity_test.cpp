// A model keeps its identity: what trainers say is found in every container, contradictions are
// refused, and a file goes from format to format with one sampling law. What is no model of ours is
// named.
#include "tests/support.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/tensor_file.h"
#include "tiltflow/io/torch_file.h"
#include "tiltflow/models/autoencoder/autoencoder.h"
#include "tiltflow/models/flow_model.h"
#include "tiltflow/models/foreign_model.h"
#include "tiltflow/models/model_identity.h"
#include "tiltflow/models/sit/sit.h"
#include "tiltflow/models/stated_identity.h"

namespace tiltflow {
namespace {

using Args = std::map<std::string, std::string>;

SitConfig tiny_config() {
  SitConfig c;
  c.input_size = 4;
  c.patch_size = 2;
  c.in_channels = 1;
  c.hidden_size = 24;
  c.depth = 1;
  c.num_heads = 2;
  c.num_classes = 3;
  return c;
}

// A file whose metadata are `said`, as a trainer's names would become them.
FlowModel load(const Args& said, const FlowModelConfig& asked = {}) {
  const test::TempDir dir;
  write_safetensors(dir / "m.safetensors", init_sit(tiny_config(), RandomStreams(3)), said);
  FlowModelConfig config = asked;
  config.file = (dir / "m.safetensors").string();
  return load_flow_model(config);
}

std::string heads(const Args& said, const Args& asked = {}) {
  FlowModelConfig config;
  config.args = asked;
  return load(said, config).model->spec().args.at("num_heads");
}

std::string law(const FlowModel& flow) { return cat(flow.path->name(), " ", flow.prediction); }

void refuse(const std::string& text, const Args& said, const FlowModelConfig& asked = {}) {
  test::expect_error(ErrorKind::kBadFile, text, [&] { load(said, asked); });
}

ParameterSet named(const std::vector<std::string>& names) {
  ParameterSet out;
  for (const std::string& name : names) out.add(name, at::zeros({2, 2}));
  return out;
}

}  // namespace

TEST(models_identity, PathAndPredictionFromAnyContainer) {
  const Args four{{"args.num_heads", "4"}};
  const auto of = [&](Args said) {
    said.insert(four.begin(), four.end());
    return law(load(said));
  };
  EXPECT_EQ(of({}), "linear velocity");
  EXPECT_EQ(of({{"args.path_type", "GVP"}, {"args.prediction", "noise"}}), "gvp noise");
  EXPECT_EQ(of({{"path_type", "VP"}, {"prediction", "score"}}), "vp score");
  EXPECT_EQ(
      of({{"hyper_parameters.transport.path-type", "gvp"}, {"config.loss.prediction", "epsilon"}}),
      "gvp noise");
  EXPECT_EQ(of({{"args", R"({"path_type": "GVP", "model": {"prediction": "noise"}})"}}),
            "gvp noise");
  EXPECT_EQ(of({{"args.path_type", "PathType.LINEAR"}, {"args.prediction", "None"}}),
            "linear velocity");
  EXPECT_EQ(of({{"tiltflow.path", "gvp"}, {"args.path_type", "GVP"}}), "gvp velocity");
  EXPECT_EQ(of({{"config.interpolant.type", "GVP"}, {"config.prediction.name", "noise"}}),
            "gvp noise");
}

// Texts that a trainer kept: YAML, the command line, a printed Namespace, pairs.
TEST(models_identity, PathAndPredictionFromTexts) {
  const auto of = [](const std::string& text) {
    return law(load({{"args.num_heads", "4"}, {"config", text}}));
  };
  EXPECT_EQ(of("model:\n  path_type: GVP\nprediction: noise\n"), "gvp noise");
  EXPECT_EQ(of("['train.py', '--path-type', 'GVP', '--prediction=noise']"), "gvp noise");
  EXPECT_EQ(of("train.py --path-type VP --prediction score"), "vp score");
  EXPECT_EQ(of("Namespace(path_type='GVP', prediction='noise')"), "gvp noise");
  EXPECT_EQ(of("[('path_type', 'GVP'), ('prediction', 'noise')]"), "gvp noise");
  EXPECT_EQ(of("a better prediction noise and score: see notes"), "linear velocity");
  EXPECT_EQ(
      law(load({{"args.path_type", "Linear"}, {"args.num_heads", "4"}, {"log", "path_type: GVP"}})),
      "linear velocity");
}

// A checkpoint of Lightning: the network beside a loss.
TEST(models_foreign, ANetworkBesideOtherModulesIsTakenByName) {
  const test::TempDir dir;
  ParameterSet both;
  for (const auto& [name, tensor] : init_sit(tiny_config(), RandomStreams(3))) {
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

// What the user decides for a new file leaves no other word about it in the file, and nothing else
// is lost.
TEST(models_identity, DecisionsReplaceWhatATextSays) {
  const std::map<std::string, std::string> said{{"config", R"({"path_type": "GVP", "lr": 0.5})"},
                                                {"note", R"({"a": 1})"},
                                                {"args.num_heads", "4"}};
  EXPECT_EQ(without_identity(said), (Args{{"config.lr", "0.5"}, {"note", R"({"a": 1})"}}));
}

TEST(models_identity, ContradictionsAndUnknownValuesAreRefused) {
  const Args heads{{"args.num_heads", "4"}};
  refuse("'Linear' and config.path_type = 'GVP' contradict",
         {{"args.path_type", "Linear"}, {"config.path_type", "GVP"}, *heads.begin()});
  refuse("tiltflow.path = 'vp' contradict",
         {{"args.path_type", "Linear"}, {"tiltflow.path", "vp"}, *heads.begin()});
  refuse("args.path_type = 'cosine' is not understood",
         {{"args.path_type", "cosine"}, *heads.begin()});
  refuse("args.prediction = 'v_prediction' is not understood",
         {{"args.prediction", "v_prediction"}, *heads.begin()});
  FlowModelConfig asked;  // the user decides
  asked.path = "vp";
  asked.prediction = "score";
  EXPECT_EQ(
      law(load({{"args.path_type", "cosine"}, {"args.prediction", "v_prediction"}, *heads.begin()},
               asked)),
      "vp score");
}

TEST(models_identity, ValuesWithoutNamesAreNotGuessed) {
  const Args heads{{"args.num_heads", "4"}};
  const auto with = [&](const std::string& text) {
    Args said = heads;
    said["args"] = text;
    return said;
  };
  refuse("args holds 'GVP' without a name: is it the path?", with("trainer.Args('GVP', 4)"));
  refuse("args holds 'noise' without a name", with("('a', 'noise', 4)"));
  FlowModelConfig answered;
  answered.path = "gvp";
  answered.prediction = "noise";
  EXPECT_EQ(law(load(with("trainer.Args('GVP', 'noise', 4)"), answered)), "gvp noise");
  EXPECT_EQ(law(load(with("trainer.Args('linear', 'runs/gvp', 4)"))), "linear velocity");
  EXPECT_EQ(law(load(with("a note on 'noise'"))), "linear velocity")
      << "a text is no list of values";
}

TEST(models_identity, HeadsOfTheTrainersArguments) {
  EXPECT_EQ(heads({{"args.num_heads", "4"}}), "4");
  EXPECT_EQ(heads({{"config.model.n_heads", "3.0"}}), "3");
  EXPECT_EQ(heads({{"args.num_heads", "4"}, {"config.vae.num_heads", "1"}}),
            "4");  // a part that is something else
  EXPECT_EQ(heads({{"args.num_heads", "4"}}, {{"num_heads", "6"}}), "6");  // the user is stronger
  refuse("contradict each other", {{"args.num_heads", "4"}, {"config.num_heads", "6"}});
  refuse("has width 384, the tensors 24", {{"args.model", "SiT-S/2"}});
  refuse("number of attention heads", {});
  refuse("a DiT has a SiT's tensors", {{"args.model", "DiT-XL/2"}, {"args.num_heads", "4"}});
  refuse("args.qk_norm = True", {{"args.qk_norm", "True"}, {"args.num_heads", "4"}});
  refuse("contradict each other",
         {{"args.num_heads", "4"}, {"tiltflow.args", R"({"num_heads": "2"})"}});
}

// Official sizes by their names: width 384 belongs to SiT-S with 6 heads, whatever the trainer's
// spelling.
TEST(models_identity, SizesByName) {
  for (const char* name : {"SiT-S/2", "sit_s_2", "SiT-S-2"}) {
    EXPECT_EQ(official_sit_size(name), "SiT-S/2") << name;
  }
  EXPECT_EQ(official_sit_size("SiT-XL/8"), "SiT-XL/8");
  EXPECT_EQ(official_sit_size("SiT-M/2"), "");
  SitConfig small = tiny_config();
  small.hidden_size = 384;
  small.num_heads = 6;
  const TensorFile file{init_sit(small, RandomStreams(0)), {{"args.model", "SiT-S/2"}}};
  EXPECT_EQ(constructor_arguments(file, "sit", stated_identity(file.metadata), {}, "x")
                .at("num_heads")
                .value,
            "6");
  const TensorFile other{file.tensors, {{"args.model", "SiT-S/2"}, {"args.num_heads", "8"}}};
  test::expect_error(ErrorKind::kBadFile, "'8' and args.model = 'SiT-S/2' contradict", [&] {
    constructor_arguments(other, "sit", stated_identity(other.metadata), {}, "x");
  });
}

TEST(models_identity, TheTableOfLabelsIsReadByTheNumberOfClasses) {
  EXPECT_EQ(load({{"args.num_heads", "2"}}).model->classes(), 3);
  EXPECT_EQ(load({{"args.num_heads", "2"}, {"args.num_classes", "3"}}).model->classes(), 3);
  EXPECT_EQ(load({{"args.num_heads", "2"}, {"args.num_classes", "4"}}).model->classes(),
            4);  // no null class
  EXPECT_EQ(load({{"args.num_heads", "2"}, {"args.class_dropout_prob", "0.0"}}).model->classes(),
            4);
  EXPECT_EQ(load({{"args.num_heads", "2"}, {"args.num_classes", "1000"}}).model->classes(),
            3);  // the tensors count
}

TEST(models_identity, RowsNameTheirSources) {
  const TensorFile file{init_sit(tiny_config(), RandomStreams(3)),
                        {{"args.path_type", "GVP"}, {"args.epochs", "5"}}};
  std::map<std::string, std::string> sources;
  const std::vector<IdentityRow> rows = model_identity(file, {{"prediction", "score"}}, "x");
  for (const IdentityRow& row : rows) {
    sources[row.name] = row.value.empty() ? "?" : cat(row.value, " by ", row.source);
  }
  EXPECT_EQ(sources.at("family"), "sit by its tensors");
  EXPECT_EQ(sources.at("path"), "gvp by args.path_type = 'GVP'");
  EXPECT_EQ(sources.at("prediction"), "score by given");
  EXPECT_EQ(sources.at("depth"), "1 by its tensors");
  EXPECT_EQ(sources.at("num_heads"), "?");
  const Args kept = identity_metadata(file, rows);
  EXPECT_EQ(kept.at("tiltflow.path"), "gvp");
  EXPECT_EQ(kept.at("args.epochs"), "5");
  EXPECT_FALSE(kept.count("args.path_type"));
}

TEST(models_foreign, ArchitecturesAreNamed) {
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

TEST(models_foreign, MessagesSayWhatTheFileHoldsAndWhatIsTaken) {
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
TEST(models_foreign, VariantsOfDiffusersAreFound) {
  const test::TempDir dir;
  const std::filesystem::path source = test::source_dir() / "tests/golden/diffusers/taesd";
  std::filesystem::copy(source / "config.json", dir / "config.json");
  std::filesystem::copy(source / "diffusion_pytorch_model.safetensors",
                        dir / "diffusion_pytorch_model.fp16.safetensors");
  EXPECT_EQ(load_autoencoder(dir.path())->latent_channels(),
            load_autoencoder(source)->latent_channels());
}

}  // namespace tiltflow
