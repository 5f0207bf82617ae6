// What a pre-training run says about its data.
#include <nlohmann/json.hpp>

#include "tests/support.h"
#include "tiltflow/io/image.h"
#include "tiltflow/train/pretraining_run.h"
#include "tiltflow/train/run.h"

namespace tiltflow {

TEST(train_pretraining, DataAreRecorded) {
  const test::TempDir dir;
  std::filesystem::create_directories(dir / "p/cat");
  for (int i = 0; i < 3; ++i) {
    write_png(dir / ("p/cat/" + std::to_string(i) + ".png"), at::zeros({1, 4, 4}));
  }
  write_file_atomic(dir / "p/cat/bad.png", "no picture");
  PretrainConfig config;
  config.data = {"folder", (dir / "p").string()};
  config.batch = 2;
  config.item = 2;
  config.model.args = {{"input_size", "4"},  {"patch_size", "4"},     {"in_channels", "1"},
                       {"hidden_size", "8"}, {"depth", "1"},          {"num_heads", "2"},
                       {"num_classes", "1"}, {"learn_sigma", "false"}};
  config.train.steps = 1;
  EXPECT_THROW(set_up(config), Error);
  config.data.skip_bad = true;
  PretrainSetup setup = set_up(config);
  tiltflow::Run run(dir / "run", "", false);
  pretrain(std::move(setup), run);
  const auto record = nlohmann::json::parse(read_file(dir / "run/data.json"));
  EXPECT_EQ(record.at("items"), 3);
  EXPECT_EQ(record.at("classes"), std::vector<std::string>{"cat"});
  ASSERT_EQ(record.at("skipped").size(), 1u);
  EXPECT_NE(record.at("skipped")[0].get<std::string>().find("bad.png: not a picture"),
            std::string::npos);
  EXPECT_EQ(record.at("notes").size(), 1u);
}

}  // namespace tiltflow
