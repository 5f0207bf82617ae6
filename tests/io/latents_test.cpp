#include "tiltflow/io/latents.h"
#include "tests/support.h"

namespace tiltflow {

TEST(io_latents, UnfitTensorsAreNamed) {
  const test::TempDir dir;
  const at::Tensor mean = at::zeros({2, 4, 3, 3});
  const at::Tensor labels = at::arange(2);
  const auto expect = [&](const std::string& text, const LatentFile& file) {
    write_latents(dir / "l", file);
    test::expect_error(ErrorKind::kBadFile, text, [&] { read_latents(dir / "l"); });
    EXPECT_EQ(latents_source(dir / "l"), "");
  };
  write_latents(dir / "l", {mean, mean, labels, 0.5, 0, "these"});
  EXPECT_EQ(read_latents(dir / "l").classes(), 2);
  expect("'mean' is Float [2, 4, 9]", {mean.view({2, 4, 9}), {}, labels, 1, 0, "these"});
  expect("'mean' is Double", {mean.to(at::kDouble), {}, labels, 1, 0, "these"});
  expect("2 latents but 3 labels", {mean, {}, at::arange(3), 1, 0, "these"});
  expect("'labels' is Int", {mean, {}, labels.to(at::kInt), 1, 0, "these"});
  expect("'logvar' is", {mean, mean.narrow(1, 0, 2).contiguous(), labels, 1, 0, "these"});
  expect("not finite", {mean / 0, {}, labels, 1, 0, "these"});
  expect("no numbers to scale with", {mean, {}, labels, 0, 0, "these"});
  expect("labels reach from", {mean, {}, labels * 3'000'000'000, 1, 0, "these"});
}

}  // namespace tiltflow
