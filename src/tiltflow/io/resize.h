// Pictures of any size to training size, exactly as Pillow resizes 8-bit pictures.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

namespace tiltflow {

// [C, H, W] uint8 -> [C, height, width] uint8 with Pillow's "box" or "bicubic" filter: antialiased,
// rows first, rounded to 8 bits in between. Cost: C (H W + H width) times the support of the
// filter.
at::Tensor resize(const at::Tensor& picture, std::int64_t height, std::int64_t width,
                  const std::string& filter);

// The central square at `size` x `size`, as guided diffusion and SiT prepare ImageNet: halved by
// box averages while the short side is at least 2 * size, then bicubic to a short side of `size`,
// then cropped. Throws kBadFile, with `name`, for a strip too narrow for that.
at::Tensor center_crop(const at::Tensor& picture, std::int64_t size,
                       const std::string& name = "a picture");

}  // namespace tiltflow
