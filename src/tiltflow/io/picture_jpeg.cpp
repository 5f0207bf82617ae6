#include <algorithm>
#include <csetjmp>
#include <cstdio>
#include <vector>
// libjpeg needs <cstdio> first
#include <jerror.h>
#include <jpeglib.h>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/picture_codecs.h"

namespace tiltflow {
namespace {

constexpr int kMaxScans = 500;  // of progressive pictures; a small file may ask for millions

// What libjpeg calls back. A warning about the pixels is an error here: libjpeg would fill what is
// missing with grey.
struct JpegCallbacks {
  jpeg_error_mgr errors;
  jpeg_progress_mgr progress;
  std::jmp_buf jump;
  char message[JMSG_LENGTH_MAX];
};

[[noreturn]] void stop(j_common_ptr info) {
  auto* callbacks = reinterpret_cast<JpegCallbacks*>(info->err);
  (*info->err->format_message)(info, callbacks->message);
  std::longjmp(callbacks->jump, 1);
}

void on_message(j_common_ptr info, int level) {
  if (level >= 0) return;  // a trace
  const int code = info->err->msg_code;
  const bool harmless = code == JWRN_JFIF_MAJOR || code == JWRN_ADOBE_XFORM;
  if (!harmless) stop(info);
}

void on_progress(j_common_ptr info) {
  if (!info->is_decompressor) return;
  if (reinterpret_cast<j_decompress_ptr>(info)->input_scan_number <= kMaxScans) return;
  auto* callbacks = reinterpret_cast<JpegCallbacks*>(info->err);
  std::snprintf(callbacks->message, sizeof callbacks->message, "more than %d scans", kMaxScans);
  std::longjmp(callbacks->jump, 1);
}

struct JpegReader {
  explicit JpegReader(JpegCallbacks& callbacks) {
    info.err = jpeg_std_error(&callbacks.errors);
    callbacks.errors.error_exit = stop;
    callbacks.errors.emit_message = on_message;
  }
  ~JpegReader() { jpeg_destroy_decompress(&info); }
  JpegReader(const JpegReader&) = delete;
  JpegReader& operator=(const JpegReader&) = delete;

  jpeg_decompress_struct info{};
};

// libjpeg leaves `work` by a long jump on errors: it must own nothing.
template <class Work>
bool without_error(JpegCallbacks& callbacks, const Work& work) {
  if (setjmp(callbacks.jump)) return false;
  work();
  return true;
}

J_COLOR_SPACE wanted_space(const jpeg_decompress_struct& info) {
  if (info.num_components == 1) return JCS_GRAYSCALE;
  return info.num_components == 4 ? JCS_CMYK : JCS_RGB;
}

int scaled(int value, int factor) {  // round(value factor / 255), as Pillow computes it
  const int product = value * factor + 128;
  return ((product >> 8) + product) >> 8;
}

// Four inverted bytes (Adobe's convention, which Pillow assumes for all such files) to three.
std::vector<std::uint8_t> rgb_of_inverted_cmyk(const std::vector<std::uint8_t>& rows) {
  std::vector<std::uint8_t> out;
  out.reserve(rows.size() / 4 * 3);
  for (std::size_t pixel = 0; pixel + 4 <= rows.size(); pixel += 4) {
    const int light = rows[pixel + 3];  // 255 - K
    for (std::size_t i = 0; i < 3; ++i) {
      const int ink = 255 - rows[pixel + i];
      out.push_back(static_cast<std::uint8_t>(std::clamp(light - scaled(ink, light), 0, 255)));
    }
  }
  return out;
}

int orientation_of(const jpeg_decompress_struct& info) {
  for (auto marker = info.marker_list; marker != nullptr; marker = marker->next) {
    const std::string_view data(reinterpret_cast<const char*>(marker->data), marker->data_length);
    if (data.substr(0, 4) == "Exif") return orientation_of_exif(data);
  }
  return 1;
}

}  // namespace

Picture decode_jpeg_picture(std::string_view bytes, const std::string& name) {
  JpegCallbacks callbacks{};
  JpegReader reader(callbacks);
  jpeg_decompress_struct& info = reader.info;
  const auto guarded = [&](const auto& work) {
    if (!without_error(callbacks, work)) {
      fail(ErrorKind::kBadFile, cat(name, ": broken JPEG: ", callbacks.message));
    }
  };
  guarded([&] {
    jpeg_create_decompress(&info);
    jpeg_mem_src(&info, reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size());
    jpeg_save_markers(&info, JPEG_APP0 + 1, 0xffff);
    jpeg_read_header(&info, TRUE);
  });
  require_picture_size(info.image_width, info.image_height, name);
  if (info.num_components == 2) {
    fail(ErrorKind::kBadFile, cat(name, ": a JPEG of two components is neither grey nor coloured"));
  }
  const int orientation = orientation_of(info);
  callbacks.progress.progress_monitor = on_progress;
  info.progress = &callbacks.progress;
  info.out_color_space = wanted_space(info);
  guarded([&] { jpeg_start_decompress(&info); });
  const std::size_t stride =
      std::size_t{info.output_width} * static_cast<std::size_t>(info.output_components);
  std::vector<std::uint8_t> rows(stride * info.output_height);
  guarded([&] {
    while (info.output_scanline < info.output_height) {
      JSAMPROW row = rows.data() + info.output_scanline * stride;
      jpeg_read_scanlines(&info, &row, 1);
    }
    jpeg_finish_decompress(&info);
  });
  const bool cmyk = info.output_components == 4;
  Picture picture = picture_of_rows(cmyk ? rgb_of_inverted_cmyk(rows) : rows, info.output_width,
                                    info.output_height, cmyk ? 3 : info.output_components);
  picture.orientation = orientation;
  return picture;
}

}  // namespace tiltflow
