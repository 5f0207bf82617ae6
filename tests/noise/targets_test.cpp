// Lists of target pictures as other programs write them.
#include "tiltflow/noise/targets.h"
#include "tests/support.h"
#include "tiltflow/io/image.h"

namespace tiltflow {

TEST(noise_targets, PairsOfOtherEditors) {
  const test::TempDir dir;
  write_png(dir / "a.png", at::zeros({3, 4, 4}));
  write_file_atomic(dir / "pairs.jsonl",
                    "\xef\xbb\xbf{\"image\": \"a.png\", \"label\": 3}\r\n\r\n{\"image\": "
                    "\"a.png\", \"label\": 4.0}\r\n{\"image\": \"a.png\", \"label\": "
                    "\"5\"}\n{broken\n{\"image\": \"none.png\", \"label\": 1}");
  TargetsConfig config;
  config.format = "pairs";
  config.path = dir.path().string();
  const std::vector<Target> targets = list_targets(config);
  ASSERT_EQ(targets.size(), 5u);
  EXPECT_EQ(targets[0].label(), 3);
  EXPECT_EQ(targets[1].label(), 4);
  EXPECT_EQ(targets[0].image().sizes().vec(), (std::vector<std::int64_t>{3, 4, 4}));
  test::expect_error(ErrorKind::kBadFile, "pairs.jsonl:4: no whole number",
                     [&] { targets[2].label(); });
  test::expect_error(ErrorKind::kBadFile, "pairs.jsonl:5: expected a JSON object",
                     [&] { targets[3].image(); });
  test::expect_error(ErrorKind::kBadFile, "none.png", [&] { targets[4].image(); });
}

TEST(noise_targets, TransparencyByRule) {
  const test::TempDir dir;
  std::filesystem::create_directories(dir / "a");
  std::filesystem::copy_file(test::source_dir() / "tests/golden/pictures/palette-trns.png",
                             dir / "a/0.png");  // its first pixel is (10, 20, 30), transparent
  TargetsConfig config;
  config.format = "folder";
  config.path = dir.path().string();
  const auto first = [&](const char* alpha) {
    config.alpha = alpha;
    return bytes_of_state(list_targets(config)[0].image())[2][0][0].item<int>();
  };
  EXPECT_EQ(first("drop"), 30);
  EXPECT_EQ(first("white"), 255);
  EXPECT_EQ(first("black"), 0);
  test::expect_error(ErrorKind::kBadFile, "transparent", [&] { first("refuse"); });
}

}  // namespace tiltflow
