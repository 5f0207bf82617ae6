#include "tiltflow/io/resize.h"
#include "tests/support.h"
#include "tiltflow/io/dataset.h"

namespace tiltflow {

// Values of Pillow 12 (Image.resize with BOX and BICUBIC, as guided diffusion's center_crop_arr
// applies them) on a picture made of a formula: sum of all bytes, a weighted sum and three pixels.
TEST(io_resize, CenterCropEqualsPillow) {
  struct Case {
    std::int64_t height, width, size, sum, weighted;
    std::vector<std::int64_t> first, inner, last;
  };
  for (const Case& c :
       {Case{37, 53, 8, 24538, 1164571, {133, 135, 119}, {104, 125, 127}, {142, 120, 120}},
        Case{16, 23, 12, 54696, 2464843, {98, 149, 143}, {99, 84, 85}, {134, 169, 112}},
        Case{9, 11, 16, 102189, 4894746, {84, 136, 202}, {196, 102, 102}, {8, 143, 6}},
        Case{31, 31, 31, 365989, 17483173, {0, 53, 106}, {13, 216, 163}, {110, 39, 224}}}) {
    at::Tensor picture = at::empty({3, c.height, c.width}, at::kByte);
    auto p = picture.accessor<std::uint8_t, 3>();
    for (std::int64_t k = 0; k < 3; ++k) {
      for (std::int64_t y = 0; y < c.height; ++y) {
        for (std::int64_t x = 0; x < c.width; ++x) {
          p[k][y][x] =
              static_cast<std::uint8_t>((37 * y * y + 101 * x + 53 * k + x * y * (k + 1)) % 256);
        }
      }
    }
    const at::Tensor out = center_crop(picture, c.size).to(at::kLong);
    ASSERT_EQ(out.sizes().vec(), (std::vector<std::int64_t>{3, c.size, c.size}));
    EXPECT_EQ(out.sum().item<std::int64_t>(), c.sum);
    EXPECT_EQ(
        (out.flatten() * at::remainder(at::arange(out.numel()), 97)).sum().item<std::int64_t>(),
        c.weighted);
    EXPECT_TRUE(at::equal(out.select(1, 0).select(1, 0), at::tensor(c.first, at::kLong)));
    EXPECT_TRUE(
        at::equal(out.select(1, c.size / 2).select(1, c.size / 3), at::tensor(c.inner, at::kLong)));
    EXPECT_TRUE(
        at::equal(out.select(1, c.size - 1).select(1, c.size - 1), at::tensor(c.last, at::kLong)));
  }
}

}  // namespace tiltflow
