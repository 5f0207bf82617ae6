#include <cstring>

#include "tests/support.h"
#include "tiltflow/io/image.h"
#include "tiltflow/io/tensorboard.h"

namespace tiltflow {

TEST(io_image, PngAndJpegRoundTrip) {
  const at::Tensor image = at::rand({3, 9, 13}).mul(255).round().div(255);
  EXPECT_LT((decode_image(encode_png(image, {{"k", "v"}}), "x") - image).abs().max().item<double>(),
            1e-6);
  EXPECT_EQ(decode_image(encode_png(image[0].unsqueeze(0)), "x").size(0), 1);
  const at::Tensor smooth = at::linspace(0, 1, 32).view({1, 1, 32}).expand({3, 32, 32});
  EXPECT_LT((decode_image(encode_jpeg(smooth), "x") - smooth).abs().max().item<double>(), 0.05);
}

TEST(io_image, BrokenPicturesAreErrors) {
  const std::string png = encode_png(at::rand({1, 20, 20}));
  const std::string jpeg = encode_jpeg(at::rand({1, 20, 20}));
  test::expect_error(ErrorKind::kBadFile, "x",
                     [&] { decode_image(png.substr(0, png.size() / 2), "x"); });
  test::expect_error(ErrorKind::kBadFile, "x", [&] { decode_image("\xff\xd8 nothing", "x"); });
  EXPECT_EQ(decode_image(jpeg, "x").size(1), 20);
}

TEST(io_image, GridLayout) {
  const at::Tensor grid = image_grid(at::ones({5, 1, 4, 4}), 3);
  EXPECT_EQ(grid.sizes().vec(), (std::vector<std::int64_t>{1, 2 * 6 + 2, 3 * 6 + 2}));
  EXPECT_EQ(grid[0][0][0].item<float>(), 0);
  EXPECT_EQ(grid[0][2][2].item<float>(), 1);
}

}  // namespace tiltflow
