#include "tiltflow/models/model_identity.h"
#include "tests/models/tiny_sit.h"
#include "tests/support.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/models/flow_model.h"
#include "tiltflow/models/sit/sit.h"
#include "tiltflow/models/stated_identity.h"

namespace tiltflow {
namespace {

using Args = std::map<std::string, std::string>;

using test::tiny_sit_config;

// A file whose metadata are `said`, as a trainer's names would become them.
FlowModel load(const Args& said, const FlowModelConfig& asked = {}) {
  const test::TempDir dir;
  write_safetensors(dir / "m.safetensors", init_sit(tiny_sit_config(), RandomStreams(3)), said);
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

}  // namespace

TEST(models_model_identity, PathAndPredictionFromAnyContainer) {
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
TEST(models_model_identity, PathAndPredictionFromTexts) {
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

// What the user decides for a new file leaves no other word about it in the file, and nothing else
// is lost.
TEST(models_model_identity, DecisionsReplaceWhatATextSays) {
  const std::map<std::string, std::string> said{{"config", R"({"path_type": "GVP", "lr": 0.5})"},
                                                {"note", R"({"a": 1})"},
                                                {"args.num_heads", "4"}};
  EXPECT_EQ(without_identity(said), (Args{{"config.lr", "0.5"}, {"note", R"({"a": 1})"}}));
}

TEST(models_model_identity, ContradictionsAndUnknownValuesAreRefused) {
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

TEST(models_model_identity, ValuesWithoutNamesAreNotGuessed) {
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

TEST(models_model_identity, HeadsOfTheTrainersArguments) {
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
TEST(models_model_identity, SizesByName) {
  for (const char* name : {"SiT-S/2", "sit_s_2", "SiT-S-2"}) {
    EXPECT_EQ(official_sit_size(name), "SiT-S/2") << name;
  }
  EXPECT_EQ(official_sit_size("SiT-XL/8"), "SiT-XL/8");
  EXPECT_EQ(official_sit_size("SiT-M/2"), "");
  SitConfig small = tiny_sit_config();
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

TEST(models_model_identity, TheTableOfLabelsIsReadByTheNumberOfClasses) {
  EXPECT_EQ(load({{"args.num_heads", "2"}}).model->classes(), 3);
  EXPECT_EQ(load({{"args.num_heads", "2"}, {"args.num_classes", "3"}}).model->classes(), 3);
  EXPECT_EQ(load({{"args.num_heads", "2"}, {"args.num_classes", "4"}}).model->classes(),
            4);  // no null class
  EXPECT_EQ(load({{"args.num_heads", "2"}, {"args.class_dropout_prob", "0.0"}}).model->classes(),
            4);
  EXPECT_EQ(load({{"args.num_heads", "2"}, {"args.num_classes", "1000"}}).model->classes(),
            3);  // the tensors count
}

TEST(models_model_identity, RowsNameTheirSources) {
  const TensorFile file{init_sit(tiny_sit_config(), RandomStreams(3)),
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

}  // namespace tiltflow
