#include <webp/decode.h>
#include <webp/demux.h>

#include <memory>
#include <vector>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/picture_codecs.h"

namespace tiltflow {
namespace {

using Demuxer = std::unique_ptr<WebPDemuxer, decltype(&WebPDemuxDelete)>;
using Animation = std::unique_ptr<WebPAnimDecoder, decltype(&WebPAnimDecoderDelete)>;

const std::uint8_t* data_of(std::string_view bytes) {
  return reinterpret_cast<const std::uint8_t*>(bytes.data());
}

int orientation_of(const WebPDemuxer* demuxer) {
  WebPChunkIterator chunk{};
  int orientation = 1;
  if (WebPDemuxGetChunk(demuxer, "EXIF", 1, &chunk)) {
    orientation =
        orientation_of_exif({reinterpret_cast<const char*>(chunk.chunk.bytes), chunk.chunk.size});
  }
  WebPDemuxReleaseChunkIterator(&chunk);
  return orientation;
}

Picture first_frame(const WebPData& data, const std::string& name) {
  const Animation decoder(WebPAnimDecoderNew(&data, nullptr), WebPAnimDecoderDelete);
  WebPAnimInfo info{};
  std::uint8_t* pixels = nullptr;  // RGBA, owned by the decoder
  int time = 0;
  const bool read = decoder && WebPAnimDecoderGetInfo(decoder.get(), &info) &&
                    WebPAnimDecoderGetNext(decoder.get(), &pixels, &time);
  if (!read) fail(ErrorKind::kBadFile, cat(name, ": broken WEBP animation"));
  const std::vector<std::uint8_t> rows(
      pixels, pixels + std::size_t{4} * info.canvas_width * info.canvas_height);
  Picture picture = picture_of_rows(rows, info.canvas_width, info.canvas_height, 4);
  picture.frames = info.frame_count;
  return picture;
}

Picture still_picture(std::string_view bytes, const WebPBitstreamFeatures& features,
                      const std::string& name) {
  const int channels = features.has_alpha ? 4 : 3;
  const int stride = channels * features.width;
  std::vector<std::uint8_t> rows(static_cast<std::size_t>(stride) *
                                 static_cast<std::size_t>(features.height));
  const auto decode = features.has_alpha ? WebPDecodeRGBAInto : WebPDecodeRGBInto;
  if (!decode(data_of(bytes), bytes.size(), rows.data(), rows.size(), stride)) {
    fail(ErrorKind::kBadFile, cat(name, ": broken or truncated WEBP"));
  }
  return picture_of_rows(rows, features.width, features.height, channels);
}

}  // namespace

Picture decode_webp_picture(std::string_view bytes, const std::string& name) {
  const WebPData data{data_of(bytes), bytes.size()};
  WebPBitstreamFeatures features{};
  const bool known = WebPGetFeatures(data.bytes, data.size, &features) == VP8_STATUS_OK;
  const Demuxer demuxer(known ? WebPDemux(&data) : nullptr, WebPDemuxDelete);
  if (!demuxer) fail(ErrorKind::kBadFile, cat(name, ": broken or truncated WEBP"));
  require_picture_size(features.width, features.height, name);
  Picture picture =
      features.has_animation ? first_frame(data, name) : still_picture(bytes, features, name);
  picture.orientation = orientation_of(demuxer.get());
  return picture;
}

}  // namespace tiltflow
