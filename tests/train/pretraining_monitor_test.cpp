// What pre-training shows: held-out losses, flips, classes, pictures.
#include <cmath>

#include "tests/support.h"
#include "tests/train/small_pretraining.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/image.h"
#include "tiltflow/io/json_lines.h"
#include "tiltflow/models/sit/sit.h"
#include "tiltflow/tensor/parallel.h"
#include "tiltflow/train/pretraining_monitor.h"

namespace tiltflow {
namespace {

using test::kMonitorStreams;
using test::small_pretraining_sit;
using test::two_class_pictures;

}  // namespace

TEST(train_pretraining_monitor, IsTheSameNumberWhoeverComputesIt) {
  const auto model =
      make_sit(small_pretraining_sit(), init_sit(small_pretraining_sit(), RandomStreams(1)));
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

TEST(train_pretraining_monitor, AShareLeavesTheTraining) {
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
TEST(train_pretraining_monitor, TrainingPicturesAreNone) {
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

TEST(train_pretraining_monitor, InWords) {
  EXPECT_EQ(class_counts(two_class_pictures(10, 5)), (std::vector<std::int64_t>{8, 2}));
  EXPECT_EQ(class_counts_text({8, 2}, {"a", "b"}), "a: 8, b: 2");
  std::vector<std::int64_t> many(30, 5);
  many[3] = 1;
  EXPECT_EQ(class_counts_text(many, {}), "30 classes of 1 to 5 items, median 5");
}

}  // namespace tiltflow
