// Pictures of other people's making: PNG, JPEG, WEBP and BMP, decoded to the values that Pillow
// gives.
//
// The format follows from the content, not from the name. Colour profiles and gamma chunks are
// ignored, EXIF rotations are reported and not applied, the first frame stands for an animation:
// all as torchvision's ImageFolder reads pictures. A damaged or truncated file is an error. Files
// that this project writes itself are the business of io/image.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

namespace tiltflow {

struct Picture {
  at::Tensor bytes;         // [C, H, W] uint8; C is 1 for grey, 3 for RGB
  at::Tensor alpha;         // [H, W] uint8; undefined when every pixel is opaque
  int orientation = 1;      // of EXIF, 1 to 8; 1: upright
  std::int64_t frames = 1;  // more than one: an animation, of which `bytes` is the first frame
};

// 16-bit values become round(v / 257). A palette is expanded; one without colour gives a grey
// picture. CMYK and YCCK become RGB as in Pillow. `name` stands in errors. Throws kBadFile. Cost:
// the decoded picture, of at most 16384 pixels a side and 178,956,970 in all (Pillow's bound), and
// one copy.
Picture decode_picture(std::string_view bytes, const std::string& name);
Picture read_picture_file(const std::filesystem::path& file);  // of at most 256 MiB

// What becomes of pixels that are not opaque.
enum class AlphaRule {
  kDrop,    // as Pillow's convert("RGB"): alpha is forgotten, the colour stays, whatever it is
  kWhite,   // composed on white
  kBlack,   // composed on black
  kRefuse,  // kBadFile
};
AlphaRule parse_alpha_rule(
    const std::string& name);  // "drop", "white", "black", "refuse"; throws kConfig

// [C, H, W] uint8 without alpha. `name` stands in the error of kRefuse.
at::Tensor without_alpha(const Picture& picture, AlphaRule rule, const std::string& name);
// Grey repeated for three channels, or colour to grey as Pillow's convert("L"): (19595 R + 38470 G
// + 7471 B + 32768) / 65536.
at::Tensor with_channels(const at::Tensor& bytes, std::int64_t channels);

}  // namespace tiltflow
