#include <png.h>

#include <algorithm>
#include <cstring>
#include <span>
#include <vector>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/picture_codecs.h"

namespace tiltflow {
namespace {

struct PngSource {
  std::string_view rest;
  std::string message;  // of libpng's error
};

void read_bytes(png_structp png, png_bytep out, png_size_t size) {
  auto* source = static_cast<PngSource*>(png_get_io_ptr(png));
  if (source->rest.size() < size) png_error(png, "the file is truncated");
  std::memcpy(out, source->rest.data(), size);
  source->rest.remove_prefix(size);
}

void on_error(png_structp png, png_const_charp message) {
  static_cast<PngSource*>(png_get_error_ptr(png))->message = message;
  png_longjmp(png, 1);
}

void on_warning(png_structp, png_const_charp) {}  // of chunks that do not touch the pixels

std::uint32_t chunk_number(std::string_view bytes, std::size_t offset) {
  return png_get_uint_32(reinterpret_cast<png_const_bytep>(bytes.data()) + offset);
}

// Chunks beside the pixels: the rotation, and the number of frames of an animated PNG (libpng reads
// its first picture).
void read_notes(std::string_view bytes, Picture& picture) {
  for (std::size_t at = 8; at + 12 <= bytes.size();) {
    const std::size_t length = chunk_number(bytes, at);
    if (length > bytes.size() - at - 12) return;
    const std::string_view type = bytes.substr(at + 4, 4);
    if (type == "eXIf") picture.orientation = orientation_of_exif(bytes.substr(at + 8, length));
    if (type == "acTL" && length >= 8) picture.frames = chunk_number(bytes, at + 8);
    at += 12 + length;
  }
}

bool is_grey(const png_color& color) {
  return color.red == color.green && color.green == color.blue;
}

bool has_palette(png_structp png, png_infop info) {
  return png_get_color_type(png, info) == PNG_COLOR_TYPE_PALETTE;
}

// Asks libpng for indices of a palette, or for 8-bit grey or RGB with an alpha channel where the
// file has one. No gamma and no profile: Pillow applies none.
void set_transforms(png_structp png, png_infop info) {
  if (has_palette(png, info)) {
    png_set_packing(png);
  } else {
    png_set_expand(png);    // 1, 2 and 4 bits, tRNS
    png_set_scale_16(png);  // round(v / 257)
  }
  png_set_interlace_handling(png);
  png_read_update_info(png, info);
}

struct Palette {
  std::span<const png_color> colors;
  std::span<const png_byte> alpha;  // of the first colours; the others are opaque
};

Palette palette_of(png_structp png, png_infop info) {
  png_colorp colors = nullptr;
  png_bytep alpha = nullptr;
  int size = 0;
  int alphas = 0;
  Palette out;
  if (png_get_PLTE(png, info, &colors, &size)) {
    out.colors = {colors, static_cast<std::size_t>(size)};
  }
  if (png_get_tRNS(png, info, &alpha, &alphas, nullptr)) {
    out.alpha = {alpha, static_cast<std::size_t>(alphas)};
  }
  return out;
}

// One byte a pixel to the bytes of its colour.
Picture expanded(const std::vector<std::uint8_t>& indices, const Palette& palette,
                 std::int64_t width, std::int64_t height, const std::string& name) {
  const bool grey = std::all_of(palette.colors.begin(), palette.colors.end(), is_grey);
  std::vector<std::uint8_t> out;
  for (const std::uint8_t index : indices) {
    if (index >= palette.colors.size()) {
      fail(ErrorKind::kBadFile, cat(name, ": broken PNG: a pixel is not in the palette"));
    }
    const png_color& color = palette.colors[index];
    out.push_back(color.red);
    if (!grey) out.push_back(color.green);
    if (!grey) out.push_back(color.blue);
    if (!palette.alpha.empty()) {
      out.push_back(index < palette.alpha.size() ? palette.alpha[index] : 255);
    }
  }
  return picture_of_rows(out, width, height, (grey ? 1 : 3) + (palette.alpha.empty() ? 0 : 1));
}

struct PngReader {
  explicit PngReader(PngSource& source) {
    png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &source, on_error, on_warning);
    info = png_create_info_struct(png);
    png_set_read_fn(png, &source, read_bytes);
    png_set_user_limits(png, 1 << 30, 1 << 30);  // the bound is ours
  }
  ~PngReader() { png_destroy_read_struct(&png, &info, nullptr); }
  PngReader(const PngReader&) = delete;
  PngReader& operator=(const PngReader&) = delete;

  png_structp png = nullptr;
  png_infop info = nullptr;
};

// libpng leaves `work` by a long jump on errors: it must own nothing.
template <class Work>
bool without_error(png_structp png, const Work& work) {
  if (setjmp(png_jmpbuf(png))) return false;
  work();
  return true;
}

}  // namespace

Picture decode_png_picture(std::string_view bytes, const std::string& name) {
  PngSource source{bytes, ""};
  const PngReader reader(source);
  png_structp png = reader.png;
  png_infop info = reader.info;
  const auto guarded = [&](const auto& work) {
    if (!without_error(png, work)) {
      fail(ErrorKind::kBadFile, cat(name, ": broken PNG: ", source.message));
    }
  };
  guarded([&] { png_read_info(png, info); });
  const std::int64_t width = png_get_image_width(png, info);
  const std::int64_t height = png_get_image_height(png, info);
  require_picture_size(width, height, name);
  guarded([&] { set_transforms(png, info); });
  const std::size_t stride = png_get_rowbytes(png, info);
  std::vector<std::uint8_t> pixels(stride * static_cast<std::size_t>(height));
  std::vector<png_bytep> rows;
  for (std::int64_t y = 0; y < height; ++y) {
    rows.push_back(pixels.data() + static_cast<std::size_t>(y) * stride);
  }
  guarded([&] {
    png_read_image(png, rows.data());
    png_read_end(png, nullptr);
  });
  Picture picture = has_palette(png, info)
                        ? expanded(pixels, palette_of(png, info), width, height, name)
                        : picture_of_rows(pixels, width, height, png_get_channels(png, info));
  read_notes(bytes, picture);
  return picture;
}

}  // namespace tiltflow
