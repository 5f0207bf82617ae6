// What pre-training shows: held-out losses, flips, classes, pictures.
#include <cmath>

#include "tests/support.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/image.h"
#include "tiltflow/io/json_lines.h"
#include "tiltflow/models/sit/sit.h"
#include "tiltflow/report/run_report.h"
#include "tiltflow/tensor/parallel.h"
#include "tiltflow/train/pretraining_run.h"

namespace tiltflow {
namespace {

const RandomStreams kMonitorStreams(4);

SitConfig small_sit() {
  SitConfig c;
  c.input_size = 8;
  c.patch_size = 4;
  c.in_channels = 1;
  c.hidden_size = 16;
  c.depth = 1;
  c.num_heads = 2;
  c.num_classes = 2;
  c.learn_sigma = false;
  return c;
}

// Random pictures of two classes; class 1 has every `rare`-th.
ImageDataset two_class_pictures(std::int64_t n, std::int64_t rare = 2) {
  ImageDataset data;
  data.images =
      kMonitorStreams.uniform(Purpose::kExact, static_cast<std::uint32_t>(n), 0, n, {1, 8, 8})
          .mul(255)
          .to(at::kByte);
  data.labels = at::arange(n).remainder(rare).eq(0).to(at::kLong);
  data.class_names = {"a", "b"};
  return data;
}

PretrainConfig small_config() {
  PretrainConfig c;
  c.batch = 8;
  c.item = 4;
  c.train.steps = 4;
  c.train.average_decay = 0.9;
  c.evaluation.every = 2;
  c.evaluation.samples = 20;
  c.evaluation.sampler_steps = 2;
  return c;
}

}  // namespace

TEST(train_flip, MirrorsHalfWhateverThePieces) {
  const at::Tensor x = kMonitorStreams.uniform(Purpose::kExact, 1, 0, 200, {1, 4, 6});
  const at::Tensor whole = randomly_flipped(x, kMonitorStreams, 3, 0);
  const at::Tensor parts =
      at::cat({randomly_flipped(x.narrow(0, 0, 70), kMonitorStreams, 3, 0),
               randomly_flipped(x.narrow(0, 70, 130), kMonitorStreams, 3, 70)});
  EXPECT_TRUE(at::equal(whole, parts));
  std::int64_t mirrored = 0;
  for (std::int64_t i = 0; i < 200; ++i) {
    const bool flipped = at::equal(whole[i], x[i].flip({2}));
    EXPECT_TRUE(flipped || at::equal(whole[i], x[i])) << i;
    mirrored += flipped;
  }
  EXPECT_NEAR(static_cast<double>(mirrored), 100, 4 * std::sqrt(50.0));
  EXPECT_FALSE(at::equal(whole, randomly_flipped(x, kMonitorStreams, 4, 0)))
      << "chosen anew in every step";
}

TEST(train_flip, ReachesEveryKindOfTraining) {
  const test::TempDir dir;
  const auto first_loss = [&](const std::string& kind, bool flip) {
    PretrainConfig c = small_config();
    c.kind = kind;
    c.data.flip = flip;
    c.train.steps = 1;
    c.evaluation.every = 0;
    if (kind == "flow") c.model.args = to_args(small_sit());
    if (kind == "classifier") {
      c.model.args = {{"input_size", "8"}, {"num_classes", "2"}};
      c.noise = 0;
      c.shift = 0;
    }
    if (kind == "gan") {
      c.model.args = {{"image_size", "8"},    {"num_classes", "2"},     {"upsamplings", "1"},
                      {"base_channels", "4"}, {"d_base_channels", "4"}, {"feat_dim", "8"},
                      {"z_dim", "4"}};
    }
    PretrainSetup setup{c, nullptr, two_class_pictures(32), two_class_pictures(0)};
    if (kind == "flow") {
      setup.model = make_sit(small_sit(), init_sit(small_sit(), RandomStreams(1)));
    }
    tiltflow::Run run(dir / cat(kind, flip), "x", false);
    pretrain(std::move(setup), run);
    return read_json_lines(dir / cat(kind, flip) / "metrics.jsonl").back().at("loss").get<double>();
  };
  for (const std::string kind : {"flow", "classifier", "gan"}) {
    EXPECT_NE(first_loss(kind, true), first_loss(kind, false)) << kind;
  }
}

TEST(train_validation, IsTheSameNumberWhoeverComputesIt) {
  const auto model = make_sit(small_sit(), init_sit(small_sit(), RandomStreams(1)));
  const auto path = make_path("linear");
  const ImageDataset held_out = two_class_pictures(150);
  const auto validate = [&](std::int64_t samples) {
    return flow_validation(*model, *path, {}, held_out, 2, samples, kMonitorStreams);
  };
  const auto before = thread_policy();
  set_thread_policy({1, 1});
  const auto one = validate(150);
  set_thread_policy({3, 1});
  EXPECT_EQ(validate(150), one);
  set_thread_policy(before);
  // A fresh SiT answers 0: its loss is the mean of |x_1 - x_0|^2, one plus the data's mean square.
  const at::Tensor x = held_out.images.to(at::kDouble) / 127.5 - 1;
  EXPECT_NEAR(one.at("validation_loss"), 1 + x.square().mean().item<double>(),
              4 * one.at("validation_loss_se"));
  EXPECT_GT(one.at("validation_loss_se"), 0);
  EXPECT_NEAR(validate(75).at("validation_loss_se") / one.at("validation_loss_se"), std::sqrt(2.0),
              0.5);
  EXPECT_TRUE(
      flow_validation(*model, *path, {}, two_class_pictures(0), 2, 8, kMonitorStreams).empty());
}

TEST(train_held_out, AShareLeavesTheTraining) {
  ImageDataset data = two_class_pictures(50);
  data.images = at::arange(50).to(at::kByte).view({50, 1, 1, 1});
  const ImageDataset all = data;
  const ImageDataset held_out =
      held_out_data({"folder", "/nonexistent"}, 0.2, data, kMonitorStreams);
  EXPECT_EQ(held_out.size(), 10);
  EXPECT_EQ(data.size(), 40);
  const at::Tensor together = std::get<0>(at::cat({data.images, held_out.images}).flatten().sort());
  EXPECT_TRUE(at::equal(together, all.images.flatten()));
  EXPECT_TRUE(at::equal(held_out.labels,
                        all.labels.index_select(0, held_out.images.flatten().to(at::kLong))));
  ImageDataset tiny = two_class_pictures(2);
  test::expect_error(ErrorKind::kConfig, "leaves nothing", [&] {
    held_out_data({"folder", "/nonexistent"}, 0.1, tiny, kMonitorStreams);
  });
}

// Two folders of classes and no split: what is read as test would be the training pictures.
TEST(train_held_out, TrainingPicturesAreNone) {
  const test::TempDir dir;
  const auto write = [&](const std::string& folder) {
    for (const char* name : {"a", "b"}) {
      make_directories(dir / folder / name);
      for (int i = 0; i < 2; ++i) {
        write_png(
            dir / folder / name / cat(i, ".png"),
            kMonitorStreams.uniform(Purpose::kExact, static_cast<std::uint32_t>(folder.size()), i,
                                    1, {1, 8, 8})[0]);
      }
    }
  };
  write("flat");
  write("split/train");
  write("split/test");
  for (const auto& [folder, expected] : {std::pair{"flat", 0}, {"split", 4}}) {
    const DatasetConfig config{"folder", (dir / folder).string()};
    ImageDataset training = read_dataset(config, "train");
    EXPECT_EQ(held_out_data(config, 0, training, kMonitorStreams).size(), expected) << folder;
    EXPECT_EQ(training.size(), 4);
  }
}

TEST(train_class_counts, InWords) {
  EXPECT_EQ(class_counts(two_class_pictures(10, 5)), (std::vector<std::int64_t>{8, 2}));
  EXPECT_EQ(class_counts_text({8, 2}, {"a", "b"}), "a: 8, b: 2");
  std::vector<std::int64_t> many(30, 5);
  many[3] = 1;
  EXPECT_EQ(class_counts_text(many, {}), "30 classes of 1 to 5 items, median 5");
}

TEST(train_pretrain, RunsShowPicturesValidationAndClasses) {
  const test::TempDir dir;
  PretrainConfig c = small_config();
  c.model.args = to_args(small_sit());
  PretrainSetup setup{c, make_sit(small_sit(), init_sit(small_sit(), RandomStreams(1))),
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
