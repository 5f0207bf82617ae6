// Pictures made here: PNG and JPEG files, and grids of samples; other people's files are read by
// io/picture. Images are [C, H, W] or [N, C, H, W] fp32 in [0, 1], C = 1 or 3.
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace tiltflow {

// PNG bytes of one image; `text` becomes tEXt chunks. Values are clamped, scaled by 255 and
// rounded.
std::string encode_png(const at::Tensor& image,
                       const std::map<std::string, std::string>& text = {});
std::string encode_jpeg(const at::Tensor& image, int quality = 92);
// [1 or 3, H, W]; any format of io/picture, alpha dropped. Throw kBadFile.
at::Tensor decode_image(const std::string& bytes, const std::string& name);
at::Tensor read_image(const std::filesystem::path& path);
void write_png(const std::filesystem::path& path, const at::Tensor& image,
               const std::map<std::string, std::string>& text = {});

// Rows of `columns` images with a 2-pixel black border, as torchvision's make_grid. [N, C, H, W] ->
// [C, H', W']. With `captions` (one per image) a line of text stands under each, larger below
// larger images; cells widen until all are whole.
at::Tensor image_grid(const at::Tensor& images, int columns = 8,
                      const std::vector<std::string>& captions = {});
// Nearest-neighbour enlargement by a whole factor.
at::Tensor enlarge(const at::Tensor& image, int factor);

// Can samples of this shape (without the batch dimension) be shown: grey or colour pictures?
inline bool is_picture(at::IntArrayRef shape) {
  return shape.size() == 3 && (shape[0] == 1 || shape[0] == 3);
}

}  // namespace tiltflow
