#include "tiltflow/models/clip/vision.h"
#include "tests/models/clip_samples.h"
#include "tests/support.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/eval/parity.h"

namespace tiltflow {
namespace {

using test::clip_folder;
using test::clip_golden;

}  // namespace

TEST(models_vision, EmbeddingsAndGradientsEqualTheReference) {
  for (const ParityRow& row : compare_with_reference(*load_clip_vision(clip_folder("vision_gelu")),
                                                     clip_golden("vision_gelu_io"))) {
    EXPECT_TRUE(row.ok()) << row.tensor << " " << row.error;
  }
  // open_clip's names, quick gelu, heads of eight channels
  const auto rows = compare_with_reference(
      *load_clip_vision(clip_folder("openclip_quickgelu.pt"), {{"num_heads", "3"}}),
      clip_golden("openclip_quickgelu_io"));
  EXPECT_EQ(rows.size(), 2u);
  for (const ParityRow& row : rows) EXPECT_TRUE(row.ok()) << row.tensor << " " << row.error;
  // Another activation or number of heads is noticed.
  for (const std::map<std::string, std::string>& wrong :
       {std::map<std::string, std::string>{{"num_heads", "2"}},
        {{"num_heads", "3"}, {"activation", "gelu"}}}) {
    EXPECT_FALSE(
        compare_with_reference(*load_clip_vision(clip_folder("openclip_quickgelu.pt"), wrong),
                               clip_golden("openclip_quickgelu_io"))[0]
            .ok());
  }
  test::expect_error(ErrorKind::kBadFile, "not a CLIP image tower",
                     [] { load_clip_vision(test::golden("sit_a_ema.safetensors")); });
  test::expect_error(ErrorKind::kConfig, "do not divide into 7 heads", [] {
    load_clip_vision(clip_folder("openclip_quickgelu.pt"), {{"num_heads", "7"}});
  });
}

TEST(models_vision, PreprocessingEqualsTorchvision) {
  const ParameterSet g = clip_golden("preprocess");
  for (const char* name : {"case4", "case5", "case6", "case7"}) {
    const at::Tensor expected = g.at(cat(name, ".torch_aa.pixel_values"));
    const at::Tensor image =
        (g.at(cat(name, ".image_uint8")).permute({2, 0, 1}).unsqueeze(0).to(at::kFloat) / 255)
            .set_requires_grad(true);
    const at::AutoGradMode grad(true);
    const at::Tensor found = clip_preprocess(image, expected.size(1));
    EXPECT_LT((found[0] - expected).abs().max().item<double>(), 1e-5) << name;
    const at::Tensor gradient = torch::autograd::grad(
        {(found[0] * g.at(cat(name, ".torch_aa.cotangent"))).sum()}, {image})[0];
    EXPECT_LT(test::relative_error(gradient[0], g.at(cat(name, ".torch_aa.vjp_image"))), 1e-5)
        << name;
  }
  const at::Tensor grey = RandomStreams(1).uniform(Purpose::kProbe, 0, 0, 2, {1, 32, 32});
  EXPECT_TRUE(at::equal(clip_preprocess(grey, 28), clip_preprocess(grey.repeat({1, 3, 1, 1}), 28)));
}

}  // namespace tiltflow
