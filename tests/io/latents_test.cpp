#include "tiltflow/io/latents.h"
#include <cmath>

#include "tests/support.h"
#include "tiltflow/io/dataset.h"

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

TEST(io_latents, AreScaledDrawnAndVerified) {
  const test::TempDir dir;
  LatentFile file;
  file.mean = at::full({2, 1, 2, 2}, 3.0F);
  file.logvar = at::full({2, 1, 2, 2}, std::log(9.0F));
  file.labels = at::arange(2);
  file.scale = 0.5;
  file.shift = 1;
  file.source = "these";
  write_latents(dir / "l.safetensors", file);
  const ImageDataset data = read_dataset({"latents", (dir / "l.safetensors").string()}, "train");
  EXPECT_EQ(data.shape(), (std::vector<std::int64_t>{1, 2, 2}));
  const at::Tensor drawn = data.states(at::arange(2), [] { return at::full({2, 1, 2, 2}, 2.0F); });
  EXPECT_LT((drawn - ((3 - 1) * 0.5 + 3 * 0.5 * 2)).abs().max().item<double>(), 1e-6);
  EXPECT_EQ(latents_source(dir / "l.safetensors"), "these");
  TensorFile t = read_safetensors(dir / "l.safetensors");
  t.tensors.at("mean")[0][0][0][0] = 4;
  write_safetensors(dir / "l.safetensors", t.tensors, t.metadata);
  EXPECT_EQ(latents_source(dir / "l.safetensors"), "") << "changed content is not trusted";
  test::expect_error(ErrorKind::kBadFile, "checksum", [&] { read_latents(dir / "l.safetensors"); });
}

}  // namespace tiltflow
