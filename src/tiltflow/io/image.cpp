#include "tiltflow/io/image.h"

#include <csetjmp>
#include <cstdio>
#include <vector>
// libjpeg needs <cstdio> first
#include <jpeglib.h>
#include <png.h>

#include "tiltflow/base/error.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/caption.h"
#include "tiltflow/io/picture.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

// [C, H, W] fp32 in [0, 1] -> [H, W, C] bytes
at::Tensor to_bytes(const at::Tensor& image) {
  if (image.dim() != 3 || (image.size(0) != 1 && image.size(0) != 3)) {
    fail(ErrorKind::kFailure, "a picture needs shape [1 or 3, H, W]");
  }
  return image.detach()
      .to(at::kFloat)
      .mul(255)
      .add(0.5)
      .clamp(0, 255)
      .to(at::kByte)
      .permute({1, 2, 0})
      .contiguous();
}

void append_png(png_structp png, png_bytep data, png_size_t size) {
  static_cast<std::string*>(png_get_io_ptr(png))->append(reinterpret_cast<char*>(data), size);
}

}  // namespace

std::string encode_png(const at::Tensor& image, const std::map<std::string, std::string>& text) {
  const at::Tensor bytes = to_bytes(image);
  std::string out;
  png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, nullptr, nullptr, nullptr);
  png_infop info = png_create_info_struct(png);
  std::vector<png_text> chunks;
  if (setjmp(png_jmpbuf(png))) {
    png_destroy_write_struct(&png, &info);
    fail(ErrorKind::kFailure, "libpng could not encode a picture");
  }
  png_set_write_fn(png, &out, append_png, nullptr);
  png_set_IHDR(png, info, static_cast<png_uint_32>(bytes.size(1)),
               static_cast<png_uint_32>(bytes.size(0)), 8,
               bytes.size(2) == 1 ? PNG_COLOR_TYPE_GRAY : PNG_COLOR_TYPE_RGB, PNG_INTERLACE_NONE,
               PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
  for (const auto& [key, value] : text) {
    png_text chunk{};
    chunk.compression = PNG_TEXT_COMPRESSION_NONE;
    chunk.key = const_cast<char*>(key.c_str());
    chunk.text = const_cast<char*>(value.c_str());
    chunk.text_length = value.size();
    chunks.push_back(chunk);
  }
  if (!chunks.empty()) png_set_text(png, info, chunks.data(), static_cast<int>(chunks.size()));
  png_write_info(png, info);
  for (std::int64_t y = 0; y < bytes.size(0); ++y) {
    png_write_row(png, bytes.data_ptr<std::uint8_t>() + y * bytes.size(1) * bytes.size(2));
  }
  png_write_end(png, nullptr);
  png_destroy_write_struct(&png, &info);
  return out;
}

namespace {
struct JpegErrors {
  jpeg_error_mgr manager;
  std::jmp_buf jump;
  char message[JMSG_LENGTH_MAX];
};
void jpeg_fail(j_common_ptr info) {
  auto* errors = reinterpret_cast<JpegErrors*>(info->err);
  (*info->err->format_message)(info, errors->message);
  std::longjmp(errors->jump, 1);
}
}  // namespace

std::string encode_jpeg(const at::Tensor& image, int quality) {
  const at::Tensor bytes = to_bytes(image);
  jpeg_compress_struct info{};
  JpegErrors errors;
  info.err = jpeg_std_error(&errors.manager);
  errors.manager.error_exit = jpeg_fail;
  unsigned char* buffer = nullptr;
  unsigned long size = 0;
  if (setjmp(errors.jump)) {
    jpeg_destroy_compress(&info);
    std::free(buffer);
    fail(ErrorKind::kFailure, cat("libjpeg: ", errors.message));
  }
  jpeg_create_compress(&info);
  jpeg_mem_dest(&info, &buffer, &size);
  info.image_width = static_cast<JDIMENSION>(bytes.size(1));
  info.image_height = static_cast<JDIMENSION>(bytes.size(0));
  info.input_components = static_cast<int>(bytes.size(2));
  info.in_color_space = bytes.size(2) == 1 ? JCS_GRAYSCALE : JCS_RGB;
  jpeg_set_defaults(&info);
  jpeg_set_quality(&info, quality, TRUE);
  jpeg_start_compress(&info, TRUE);
  while (info.next_scanline < info.image_height) {
    JSAMPROW row =
        bytes.data_ptr<std::uint8_t>() + info.next_scanline * bytes.size(1) * bytes.size(2);
    jpeg_write_scanlines(&info, &row, 1);
  }
  jpeg_finish_compress(&info);
  std::string out(reinterpret_cast<char*>(buffer), size);
  jpeg_destroy_compress(&info);
  std::free(buffer);
  return out;
}

at::Tensor decode_image(const std::string& bytes, const std::string& name) {
  return decode_picture(bytes, name).bytes.to(at::kFloat).div(255);
}

at::Tensor read_image(const std::filesystem::path& path) {
  return read_picture_file(path).bytes.to(at::kFloat).div(255);
}

void write_png(const std::filesystem::path& path, const at::Tensor& image,
               const std::map<std::string, std::string>& text) {
  write_file_atomic(path, encode_png(image, text));
}

at::Tensor image_grid(const at::Tensor& images, int columns,
                      const std::vector<std::string>& captions) {
  constexpr std::int64_t kPad = 2;
  constexpr std::int64_t kCaptionWidth =
      54;  // pixels of a picture for every step of the captions' size: nine characters fit
  const std::int64_t n = images.size(0);
  const std::int64_t channels = images.size(1);
  const std::int64_t height = images.size(2);
  const std::int64_t width = images.size(3);
  const std::int64_t across = std::min<std::int64_t>(columns, n);
  const std::int64_t down = (n + across - 1) / across;
  const int scale = static_cast<int>(std::max<std::int64_t>(1, width / kCaptionWidth));
  std::vector<at::Tensor> texts;
  std::int64_t line = 0;
  std::int64_t cell_width = width;
  for (const std::string& text : captions) {
    texts.push_back(caption(text, scale));
    line = texts.back().size(0);
    cell_width = std::max(cell_width, texts.back().size(1));
  }
  const std::int64_t cell = height + line + kPad;
  at::Tensor grid =
      at::zeros({channels, down * cell + kPad, across * (cell_width + kPad) + kPad}, at::kFloat);
  for (std::int64_t i = 0; i < n; ++i) {
    const std::int64_t y = (i / across) * cell + kPad;
    const std::int64_t x = (i % across) * (cell_width + kPad) + kPad;
    grid.narrow(1, y, height).narrow(2, x, width).copy_(images[i].detach().to(at::kFloat));
    if (captions.empty()) continue;
    const at::Tensor& text = texts.at(static_cast<std::size_t>(i));
    grid.narrow(1, y + height, line).narrow(2, x, text.size(1)).copy_(text);
  }
  return grid;
}

at::Tensor enlarge(const at::Tensor& image, int factor) {
  return image.repeat_interleave(factor, 1).repeat_interleave(factor, 2);
}

}  // namespace tiltflow
