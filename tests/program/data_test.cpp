// Folders of foreign pictures through the program.
#include "tests/program/program.h"
#include "tiltflow/io/image.h"

namespace tiltflow {
namespace {

using test::expect_message, test::Outcome, test::run;

}  // namespace

TEST(program_data, BadPicturesAreNamedOrSkipped) {
  const test::TempDir dir;
  const std::string at = dir.path().string();
  const std::string good = read_file(test::source_dir() / "tests/golden/pictures/cmyk.jpg");
  std::filesystem::create_directories(dir / "p/a");
  for (int i = 0; i < 3; ++i) write_file_atomic(dir / cat("p/a/", i, ".jpg"), good);
  write_file_atomic(dir / "p/a/cut.jpg", good.substr(0, good.size() / 2));
  const std::string ask =
      cat("encode --autoencoder tests/golden/diffusers/taesd --workers 1 --data ", at, "/p --out ",
          at, "/l.safetensors ");
  expect_message(run(ask), 4, "p/a/cut.jpg: broken JPEG");
  EXPECT_FALSE(std::filesystem::exists(dir / "l.safetensors"));
  const Outcome skipped = run(ask + "--skip-bad");
  expect_message(skipped, 0, "skipped: 1 of 4 pictures");
  expect_message(skipped, 0, "wrote 3 latents");
}

TEST(program_data, StatisticsOfOnePictureAreRefused) {
  const test::TempDir dir;
  std::filesystem::create_directories(dir / "p/a");
  write_png(dir / "p/a/0.png", at::zeros({1, 28, 28}));
  const std::string ask =
      cat("eval --model assets/mnist-sit.safetensors --features pixels --n 16 --steps 1 --sampler "
          "ode-euler --workers 1 --format folder --data ",
          dir.path().string(), "/p ");
  expect_message(run(ask), 4,
                 "statistics need at least 2 pictures, and more than there are features for a "
                 "regular covariance; found 1");
  expect_message(run("eval --model assets/mnist-sit.safetensors --features pixels"), 2,
                 "--features pixels has no reference");
}

}  // namespace tiltflow
