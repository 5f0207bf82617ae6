#include "tiltflow/eval/generate.h"
#include "tests/sampler/picture_field.h"
#include "tests/support.h"
#include "tests/train/small_run.h"
#include "tiltflow/flow/gaussian_mixture.h"
#include "tiltflow/io/image.h"
#include "tiltflow/io/npz.h"

namespace tiltflow {
namespace {

using test::draw_pictures;
using test::PictureField;
using test::sampler_named;

}  // namespace

// `sample` writes the law into its archives and the prediction into its pictures.
TEST(eval_generate, GeneratedFilesHoldTheLawAndPicturesThePrediction) {
  const test::TempDir dir;
  const std::shared_ptr<const Path> path = make_path("linear");
  const PictureField field(path);
  const SamplerConfig sampler = sampler_named("exponential");
  const Draws draws = draw_pictures(sampler, "linear", true);
  GenerateOptions options;
  options.n = 24;
  options.part = 10;
  options.grid = 16;
  const auto decode = [](const at::Tensor& x) { return (x + 1) / 2; };
  for (const char* pack : {"safetensors", "npz"}) {
    options.out = dir / pack;
    options.pack = pack;
    EXPECT_TRUE(
        generate(field, sampler, *path, {1, 4, 4}, RandomStreams(5), no_labels(), decode, options)
            .complete);
  }
  const ParameterSet archive = read_safetensors(dir / "safetensors/samples.safetensors").tensors;
  EXPECT_LT((archive.at("samples") - draws.x).abs().max().item<double>(), 1e-5);
  const at::Tensor bytes = read_npz(dir / "npz/samples.npz").at("arr_0");
  const at::Tensor law = decode(draws.x).clamp(0, 1).mul(255).round().permute({0, 2, 3, 1});
  EXPECT_LE((bytes.to(at::kFloat) - law).abs().max().item<double>(), 1);
  const at::Tensor seen = decode(draws.prediction).clamp(0, 1);
  const at::Tensor file = read_image(dir / "safetensors/000007.png");
  EXPECT_LT((file[0] - seen[7][0]).abs().max().item<double>(), 1.01 / 255);
  const at::Tensor grid = read_image(dir / "npz/grid.png");
  EXPECT_LT(
      (grid - image_grid(seen.narrow(0, 0, 16), 8).expand_as(grid)).abs().max().item<double>(),
      1.01 / 255);
}

}  // namespace tiltflow
