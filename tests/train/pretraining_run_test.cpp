#include <nlohmann/json.hpp>

#include "tests/support.h"
#include "tests/train/small_pretraining.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/image.h"
#include "tiltflow/io/json_lines.h"
#include "tiltflow/models/sit/sit.h"
#include "tiltflow/report/run_report.h"
#include "tiltflow/train/pretraining_run.h"
#include "tiltflow/train/run.h"

namespace tiltflow {
namespace {

using test::small_pretraining;
using test::small_pretraining_sit;
using test::two_class_pictures;

}  // namespace

TEST(train_pretraining_run, DataAreRecorded) {
  const test::TempDir dir;
  std::filesystem::create_directories(dir / "p/cat");
  for (int i = 0; i < 3; ++i) {
    write_png(dir / ("p/cat/" + std::to_string(i) + ".png"), at::zeros({1, 4, 4}));
  }
  write_file_atomic(dir / "p/cat/bad.png", "no picture");
  PretrainConfig config;
  config.data = {"folder", (dir / "p").string()};
  config.batch = 2;
  config.micro_batch = 2;
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

TEST(train_pretraining_run, RunsShowPicturesValidationAndClasses) {
  const test::TempDir dir;
  PretrainConfig c = small_pretraining();
  c.model.args = to_args(small_pretraining_sit());
  PretrainSetup setup{
      c, make_sit(small_pretraining_sit(), init_sit(small_pretraining_sit(), RandomStreams(1))),
      two_class_pictures(64, 16), two_class_pictures(30)};
  tiltflow::Run run(dir / "run", "kind = \"flow\"\n", false);
  pretrain(std::move(setup), run);
  const at::Tensor picture = read_image(dir / "run/samples/samples-step-000002.png");
  EXPECT_EQ(picture.size(1), 2 * (4 * (8 + 2) + 2))
      << "two classes, two unconditional rows, enlarged";
  std::set<std::int64_t> validated;
  for (const auto& line : read_json_lines(dir / "run/metrics.jsonl")) {
    if (line.contains("validation_loss")) validated.insert(line.at("step").get<std::int64_t>());
  }
  EXPECT_EQ(validated, (std::set<std::int64_t>{2, 4}));
  EXPECT_NE(read_file(dir / "run/metrics.jsonl").find("class a has 60 pictures, class b 4"),
            std::string::npos);
  const std::string html = read_file(write_report(dir / "run"));
  for (const char* part :
       {"Samples at step 4", "At step 2", "class a has 60 pictures", "validation"}) {
    EXPECT_NE(html.find(part), std::string::npos) << part;
  }
}

}  // namespace tiltflow
