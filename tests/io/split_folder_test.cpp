#include "tiltflow/io/split_folder.h"

#include "tests/support.h"

namespace tiltflow {

TEST(io_split_folder, OneSplitIsNeverTakenForAnother) {
  const test::TempDir dir;
  const auto make = [&](const std::string& folder) {
    std::filesystem::create_directories(dir / folder);
  };
  make("flat/cat");
  EXPECT_FALSE(split_folder(dir / "flat", "test").split);
  EXPECT_EQ(split_folder(dir / "flat", "test").folder, dir / "flat");
  make("imagenet/train/cat");
  make("imagenet/val/cat");
  EXPECT_EQ(split_folder(dir / "imagenet", "train").folder, dir / "imagenet/train");
  EXPECT_EQ(split_folder(dir / "imagenet", "test").folder, dir / "imagenet/val");
  EXPECT_TRUE(split_folder(dir / "imagenet", "test").split);
  make("imagenet/test/cat");
  EXPECT_EQ(split_folder(dir / "imagenet", "test").folder, dir / "imagenet/test");
  make("only/train/cat");
  test::expect_error(ErrorKind::kBadFile, "no test pictures in",
                     [&] { split_folder(dir / "only", "test"); });
  make("late/validation/cat");
  test::expect_error(ErrorKind::kBadFile, "it is divided into validation",
                     [&] { split_folder(dir / "late", "train"); });
}

}  // namespace tiltflow
