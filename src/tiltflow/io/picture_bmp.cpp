// BMP: a small strict reader, as no kept library reads it. Uncompressed pictures of 1 to 32 bits;
// the values are Pillow's.
#include <algorithm>
#include <array>
#include <bit>
#include <vector>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/picture_codecs.h"

namespace tiltflow {
namespace {

constexpr std::size_t kFileHeader = 14;
constexpr std::uint32_t kPlain = 0;
constexpr std::uint32_t kBitFields = 3;
constexpr std::uint32_t kAlphaBitFields = 6;

using Color = std::array<std::uint8_t, 3>;

struct Layout {
  std::int64_t width = 0;
  std::int64_t height = 0;
  bool top_down = false;
  std::size_t bits = 0;                  // a pixel
  std::size_t pixels = 0;                // their offset in the file
  std::vector<Color> palette;            // of 1, 4 and 8 bits
  std::array<std::uint32_t, 4> masks{};  // red, green, blue, alpha; of 16 and 32 bits
};

class BmpReader {
 public:
  BmpReader(std::string_view bytes, const std::string& name) : bytes_(bytes), name_(name) {}

  Picture read() const {
    const Layout layout = read_layout();
    const std::size_t stride = (static_cast<std::size_t>(layout.width) * layout.bits + 31) / 32 * 4;
    if (layout.pixels > bytes_.size() ||
        (bytes_.size() - layout.pixels) / stride < static_cast<std::size_t>(layout.height)) {
      bad("the file is truncated");
    }
    const std::size_t channels = channels_of(layout);
    std::vector<std::uint8_t> rows;
    rows.reserve(channels * static_cast<std::size_t>(layout.width * layout.height));
    for (std::int64_t y = 0; y < layout.height; ++y) {
      const auto row = static_cast<std::size_t>(layout.top_down ? y : layout.height - 1 - y);
      append_row(layout, layout.pixels + row * stride, channels, rows);
    }
    return picture_of_rows(rows, layout.width, layout.height, static_cast<std::int64_t>(channels));
  }

 private:
  [[noreturn]] void bad(const std::string& what) const {
    fail(ErrorKind::kBadFile, cat(name_, ": broken BMP: ", what));
  }

  std::uint32_t number(std::size_t offset, std::size_t width) const {
    if (offset > bytes_.size() || bytes_.size() - offset < width) bad("the file is truncated");
    std::uint32_t value = 0;
    for (std::size_t i = width; i-- > 0;) {
      value = value << 8 | static_cast<unsigned char>(bytes_[offset + i]);
    }
    return value;
  }

  std::int64_t signed_number(std::size_t offset) const {
    return static_cast<std::int32_t>(number(offset, 4));
  }

  Layout read_layout() const {
    Layout layout;
    layout.pixels = number(10, 4);
    const std::size_t header = number(kFileHeader, 4);
    const bool old = header == 12;  // of OS/2
    if (!old && (header < 40 || header > 256)) {
      bad(cat("a header of ", header, " bytes is unknown"));
    }
    layout.width = old ? std::int64_t{number(18, 2)} : signed_number(18);
    const std::int64_t height = old ? std::int64_t{number(20, 2)} : signed_number(22);
    layout.top_down = height < 0;
    layout.height = std::abs(height);
    require_picture_size(layout.width, layout.height, name_);
    layout.bits = number(old ? 24 : 28, 2);
    const std::uint32_t compression = old ? kPlain : number(30, 4);
    if (compression == 1 || compression == 2) {
      bad("run-length compression is not read; save it as PNG");
    }
    if (compression != kPlain && compression != kBitFields && compression != kAlphaBitFields) {
      bad(cat("compression ", compression, " is not read"));
    }
    if (layout.bits <= 8) {
      layout.palette = read_palette(layout.bits, header, old ? 0 : number(46, 4));
    } else {
      layout.masks = read_masks(layout.bits, header, compression);
    }
    return layout;
  }

  std::vector<Color> read_palette(std::size_t bits, std::size_t header, std::size_t used) const {
    if (bits != 1 && bits != 4 && bits != 8) bad(cat(bits, " bits a pixel are not read"));
    const std::size_t most = std::size_t{1} << bits;
    const std::size_t size = used == 0 ? most : used;
    if (size > most) bad(cat("a palette of ", size, " colours for ", bits, " bits"));
    const std::size_t entry = header == 12 ? 3 : 4;
    std::vector<Color> palette;
    for (std::size_t i = 0; i < size; ++i) {
      const std::uint32_t bgr = number(kFileHeader + header + i * entry, 3);
      palette.push_back({static_cast<std::uint8_t>(bgr >> 16), static_cast<std::uint8_t>(bgr >> 8),
                         static_cast<std::uint8_t>(bgr)});
    }
    return palette;
  }

  // Masks follow the first 40 bytes of the header; alpha counts only in headers that have room for
  // it.
  std::array<std::uint32_t, 4> read_masks(std::size_t bits, std::size_t header,
                                          std::uint32_t compression) const {
    if (bits != 16 && bits != 24 && bits != 32) bad(cat(bits, " bits a pixel are not read"));
    if (compression == kPlain && bits == 16) return {0x7c00, 0x03e0, 0x001f, 0};
    if (compression == kPlain) return {0xff0000, 0x00ff00, 0x0000ff, 0};
    std::array<std::uint32_t, 4> masks{};
    const std::size_t count = header >= 56 || compression == kAlphaBitFields ? 4 : 3;
    for (std::size_t i = 0; i < count; ++i) masks[i] = number(kFileHeader + 40 + 4 * i, 4);
    for (std::size_t i = 0; i < 4; ++i) {
      const std::uint32_t low = masks[i] == 0 ? 0 : masks[i] >> std::countr_zero(masks[i]);
      const bool whole = (low & (low + 1)) == 0 && low <= 255;
      const bool inside = bits == 32 || masks[i] >> bits == 0;
      if (!whole || !inside || (masks[i] == 0 && i < 3)) bad("its colour masks are not understood");
    }
    return masks;
  }

  static std::size_t channels_of(const Layout& layout) {
    if (layout.bits > 8) return layout.masks[3] == 0 ? 3 : 4;
    const auto grey = [](const Color& c) { return c[0] == c[1] && c[1] == c[2]; };
    return std::all_of(layout.palette.begin(), layout.palette.end(), grey) ? 1 : 3;
  }

  void append_row(const Layout& layout, std::size_t offset, std::size_t channels,
                  std::vector<std::uint8_t>& out) const {
    for (std::int64_t x = 0; x < layout.width; ++x) {
      if (layout.bits > 8) {
        append_masked(
            layout, number(offset + static_cast<std::size_t>(x) * layout.bits / 8, layout.bits / 8),
            channels, out);
      } else {
        append_indexed(layout, offset, static_cast<std::size_t>(x), channels, out);
      }
    }
  }

  static void append_masked(const Layout& layout, std::uint32_t pixel, std::size_t channels,
                            std::vector<std::uint8_t>& out) {
    for (std::size_t i = 0; i < channels; ++i) {
      const std::uint32_t mask = layout.masks[i];
      const int shift = std::countr_zero(mask);
      const std::uint32_t most = mask >> shift;
      out.push_back(static_cast<std::uint8_t>(((pixel & mask) >> shift) * 255 /
                                              most));  // rounded down, as Pillow does
    }
  }

  void append_indexed(const Layout& layout, std::size_t row, std::size_t x, std::size_t channels,
                      std::vector<std::uint8_t>& out) const {
    const std::size_t bit = x * layout.bits;
    const std::size_t shift = 8 - layout.bits - bit % 8;
    const std::size_t index = number(row + bit / 8, 1) >> shift & ((1u << layout.bits) - 1);
    if (index >= layout.palette.size()) bad("a pixel is not in the palette");
    out.insert(out.end(), layout.palette[index].begin(),
               layout.palette[index].begin() + static_cast<std::ptrdiff_t>(channels));
  }

  std::string_view bytes_;
  const std::string& name_;
};

}  // namespace

Picture decode_bmp_picture(std::string_view bytes, const std::string& name) {
  return BmpReader(bytes, name).read();
}

}  // namespace tiltflow
