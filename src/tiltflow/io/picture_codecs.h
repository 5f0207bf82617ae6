// The four decoders behind io/picture and what they share. All throw kBadFile, naming `name`.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "tiltflow/io/picture.h"

namespace tiltflow {

Picture decode_png_picture(std::string_view bytes, const std::string& name);
Picture decode_jpeg_picture(std::string_view bytes, const std::string& name);
Picture decode_webp_picture(std::string_view bytes, const std::string& name);
Picture decode_bmp_picture(std::string_view bytes, const std::string& name);

// Throws for a picture without pixels or beyond the bounds of decode_picture.
void require_picture_size(std::int64_t width, std::int64_t height, const std::string& name);
// Rows of `channels` interleaved bytes (1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha) as a
// picture.
Picture picture_of_rows(const std::vector<std::uint8_t>& rows, std::int64_t width,
                        std::int64_t height, std::int64_t channels);
// The orientation in EXIF data (a TIFF header and its first directory, perhaps after "Exif\0\0"); 1
// when it says none.
int orientation_of_exif(std::string_view exif);

}  // namespace tiltflow
