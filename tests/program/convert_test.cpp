// tiltflow convert and inspect: one model in many files.
#include <nlohmann/json.hpp>

#include "tests/program/program.h"
#include "tests/support.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/torch_file.h"
#include "tiltflow/models/flow_model.h"

namespace tiltflow::test {

// A trainer's checkpoint of a GVP path and a noise prediction is that in every file made from it.
TEST(program_convert, OneModelOneSamplingLaw) {
  const TempDir dir;
  const std::string at = dir.path().string();
  const ParameterSet ema = read_safetensors(golden("sit_a_ema.safetensors")).tensors;
  const PlainDicts said{{"args",
                         {{"path_type", "GVP"},
                          {"prediction", "noise"},
                          {"num_classes", std::int64_t{1000}},
                          {"epochs", std::int64_t{5}}}}};
  write_torch_file(
      dir / "trainer.pt",
      {{"model", read_safetensors(golden("sit_a_model.safetensors")).tensors}, {"ema", ema}}, said);
  EXPECT_EQ(
      run(cat("convert ", at, "/trainer.pt ", at, "/a.safetensors --model-arg num_heads=4")).code,
      0);
  EXPECT_EQ(run(cat("convert ", at, "/a.safetensors ", at, "/b.pt")).code, 0);
  EXPECT_EQ(run(cat("convert ", at, "/b.pt ", at, "/c.safetensors.index.json")).code, 0);
  EXPECT_EQ(run(cat("convert ", at, "/b.pt ", at, "/d.pt --checkpoint")).code, 0);
  for (const char* name :
       {"trainer.pt", "a.safetensors", "b.pt", "c.safetensors.index.json", "d.pt"}) {
    FlowModelConfig config;
    config.file = (dir / name).string();
    if (std::string(name) == "trainer.pt") config.args = {{"num_heads", "4"}};
    const FlowModel flow = load_flow_model(config);
    EXPECT_EQ(flow.path->name(), "gvp") << name;
    EXPECT_EQ(flow.prediction, "noise") << name;
    EXPECT_EQ(flow.model->spec().args.at("num_heads"), "4") << name;
    EXPECT_TRUE(at::equal(flow.model->parameters().at("pos_embed"), ema.at("pos_embed"))) << name;
  }
  // In Python: a state dict with the attributes args and metadata; {"ema": tensors, "args": {...},
  // "metadata": {...}}.
  const TorchFile b = read_torch_file(dir / "b.pt");
  const TorchFile d = read_torch_file(dir / "d.pt");
  EXPECT_EQ(state_dict_sections(b), std::vector<std::string>{""});
  EXPECT_EQ(state_dict_sections(d), std::vector<std::string>{"ema"});
  for (const PickleNode* beside : {b.document.root->state, d.document.root}) {
    const PickleNode& args = *beside->find("args");
    EXPECT_EQ(args.find("path_type")->text, "GVP");
    EXPECT_EQ(args.find("num_heads")->integer, 4);
    EXPECT_EQ(args.find("epochs")->integer, 5);
  }

  const nlohmann::json seen =
      nlohmann::json::parse(run(cat("inspect --json ", at, "/trainer.pt")).out).at("identity");
  EXPECT_EQ(seen.at("weights"), "ema of model, ema");
  EXPECT_EQ(seen.at("path").at("value"), "gvp");
  EXPECT_EQ(seen.at("path").at("source"), "args.path_type = 'GVP'");
  EXPECT_EQ(seen.at("num_heads").at("value"), "");
  EXPECT_EQ(seen.at("num_classes").at("source"), "its tensors");
}

}  // namespace tiltflow::test
