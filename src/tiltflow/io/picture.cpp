#include "tiltflow/io/picture.h"

#include <cstring>

#include "tiltflow/base/error.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/picture_codecs.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

constexpr std::int64_t kMaxSide = 16384;
constexpr std::int64_t kMaxPixels = 178'956'970;
constexpr std::size_t kMaxFile = std::size_t{1} << 28;

struct KnownContent {
  std::size_t offset;
  std::string_view magic;
  const char* what;
};

// Files that are often met under the name of a picture; the error says what they are.
constexpr KnownContent kOtherContents[] = {
    {0, "GIF8", "a GIF"},
    {0, std::string_view("II*\0", 4), "a TIFF"},
    {0, std::string_view("MM\0*", 4), "a TIFF"},
    {4, "ftypavif", "an AVIF picture"},
    {4, "ftypheic", "a HEIC picture"},
    {4, "ftypmif1", "a HEIF picture"},
    {0, "8BPS", "a Photoshop file"},
    {0, "<svg", "an SVG drawing"},
    {0, "<!DOCTYPE", "an HTML page"},
    {0, "<html", "an HTML page"},
    {0, "version https://git-lfs", "a Git LFS pointer, not the file itself"},
};

bool has_at(std::string_view bytes, std::size_t offset, std::string_view magic) {
  return bytes.size() >= offset && bytes.substr(offset, magic.size()) == magic;
}

[[noreturn]] void refuse_content(std::string_view bytes, const std::string& name) {
  if (bytes.empty()) fail(ErrorKind::kBadFile, cat(name, ": the file is empty"));
  for (const KnownContent& known : kOtherContents) {
    if (!has_at(bytes, known.offset, known.magic)) continue;
    fail(ErrorKind::kBadFile, cat(name, ": ", known.what, "; PNG, JPEG, WEBP and BMP are read"));
  }
  fail(ErrorKind::kBadFile, cat(name, ": not a picture (PNG, JPEG, WEBP and BMP are read)"));
}

}  // namespace

Picture decode_picture(std::string_view bytes, const std::string& name) {
  if (has_at(bytes, 0, "\x89PNG")) return decode_png_picture(bytes, name);
  if (has_at(bytes, 0, "\xff\xd8")) return decode_jpeg_picture(bytes, name);
  if (has_at(bytes, 0, "RIFF") && has_at(bytes, 8, "WEBP")) return decode_webp_picture(bytes, name);
  if (has_at(bytes, 0, "BM")) return decode_bmp_picture(bytes, name);
  refuse_content(bytes, name);
}

Picture read_picture_file(const std::filesystem::path& file) {
  return decode_picture(read_file(file, kMaxFile), file.string());
}

AlphaRule parse_alpha_rule(const std::string& name) {
  if (name == "drop") return AlphaRule::kDrop;
  if (name == "white") return AlphaRule::kWhite;
  if (name == "black") return AlphaRule::kBlack;
  if (name == "refuse") return AlphaRule::kRefuse;
  fail(ErrorKind::kConfig, cat("alpha '", name, "' is unknown"),
       "use drop, white, black or refuse");
}

at::Tensor without_alpha(const Picture& picture, AlphaRule rule, const std::string& name) {
  if (!picture.alpha.defined() || rule == AlphaRule::kDrop) return picture.bytes;
  if (rule == AlphaRule::kRefuse) {
    fail(ErrorKind::kBadFile, cat(name, ": the picture has transparent pixels"),
         "alpha = drop, white or black says what becomes of them");
  }
  const std::int64_t background = rule == AlphaRule::kWhite ? 255 : 0;
  const at::Tensor alpha = picture.alpha.to(at::kInt);
  const at::Tensor mixed = picture.bytes.to(at::kInt) * alpha + background * (255 - alpha);
  return (mixed + 127).div(255, "floor").to(at::kByte);
}

at::Tensor with_channels(const at::Tensor& bytes, std::int64_t channels) {
  if (bytes.size(0) == channels) return bytes;
  if (channels == 3) return bytes.expand({3, -1, -1}).contiguous();
  const at::Tensor wide = bytes.to(at::kInt);
  const at::Tensor luma = wide[0] * 19595 + wide[1] * 38470 + wide[2] * 7471 + 32768;
  return luma.bitwise_right_shift(16).to(at::kByte).unsqueeze(0);  // [1, H, W]
}

void require_picture_size(std::int64_t width, std::int64_t height, const std::string& name) {
  if (width < 1 || height < 1) fail(ErrorKind::kBadFile, cat(name, ": the picture has no pixels"));
  if (width <= kMaxSide && height <= kMaxSide && width * height <= kMaxPixels) return;
  fail(ErrorKind::kBadFile, cat(name, ": the picture of ", width, " x ", height, " is too large"),
       cat("at most ", kMaxSide, " pixels a side and ", kMaxPixels, " in all"));
}

Picture picture_of_rows(const std::vector<std::uint8_t>& rows, std::int64_t width,
                        std::int64_t height, std::int64_t channels) {
  at::Tensor interleaved = at::empty({height, width, channels}, at::kByte);
  std::memcpy(interleaved.data_ptr(), rows.data(), interleaved.nbytes());
  Picture out;
  const bool has_alpha = channels % 2 == 0;
  const std::int64_t colors = has_alpha ? channels - 1 : channels;
  out.bytes =
      interleaved.narrow(2, 0, colors).permute({2, 0, 1}).contiguous();  // [H, W, C] -> [C, H, W]
  if (!has_alpha) return out;
  const at::Tensor alpha = interleaved.select(2, colors).contiguous();
  if (alpha.min().item<int>() < 255) out.alpha = alpha;
  return out;
}

namespace {

// Numbers of a TIFF header, in its byte order; out of range: 0.
struct TiffReader {
  std::string_view bytes;
  bool big_endian;

  std::uint32_t number(std::size_t offset, std::size_t width) const {
    if (offset > bytes.size() || bytes.size() - offset < width) return 0;
    std::uint32_t value = 0;
    for (std::size_t i = 0; i < width; ++i) {
      const std::size_t at = big_endian ? offset + i : offset + width - 1 - i;
      value = value << 8 | static_cast<unsigned char>(bytes[at]);
    }
    return value;
  }
};

}  // namespace

int orientation_of_exif(std::string_view exif) {
  constexpr std::uint32_t kOrientation = 0x0112;
  if (has_at(exif, 0, std::string_view("Exif\0\0", 6))) exif.remove_prefix(6);
  const bool big_endian = has_at(exif, 0, "MM");
  if (!big_endian && !has_at(exif, 0, "II")) return 1;
  const TiffReader tiff{exif, big_endian};
  const std::size_t directory = tiff.number(4, 4);
  const std::uint32_t entries = tiff.number(directory, 2);
  for (std::uint32_t i = 0; i < entries; ++i) {
    const std::size_t entry = directory + 2 + 12 * std::size_t{i};
    if (entry + 12 > exif.size()) return 1;
    if (tiff.number(entry, 2) != kOrientation) continue;
    const std::uint32_t value = tiff.number(entry + 8, 2);
    return value >= 1 && value <= 8 ? static_cast<int>(value) : 1;
  }
  return 1;
}

}  // namespace tiltflow
