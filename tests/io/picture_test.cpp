// Foreign pictures against the values of Pillow; damaged ones are refused with their name.
#include <zlib.h>

#include "tests/support.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/image.h"
#include "tiltflow/io/npz.h"
#include "tiltflow/io/picture.h"

namespace tiltflow {
namespace {

std::filesystem::path golden_picture(const std::string& name) {
  return test::source_dir() / "tests/golden/pictures" / name;
}

std::string content_of(const std::string& name) { return read_file(golden_picture(name)); }

std::string big_endian(std::uint32_t value) {
  std::string out;
  for (int shift = 24; shift >= 0; shift -= 8) out += static_cast<char>(value >> shift & 0xff);
  return out;
}

std::string png_chunk(const std::string& kind, const std::string& data) {
  const std::string body = kind + data;
  return big_endian(static_cast<std::uint32_t>(data.size())) + body +
         big_endian(static_cast<std::uint32_t>(crc32(0, reinterpret_cast<const Bytef*>(body.data()),
                                                     static_cast<uInt>(body.size()))));
}

std::string png_header(std::uint32_t width, std::uint32_t height) {
  return std::string("\x89PNG\r\n\x1a\n") +
         png_chunk("IHDR", big_endian(width) + big_endian(height) + std::string("\x08\0\0\0\0", 5));
}

}  // namespace

// Every kind of file in tests/golden/pictures: the same values as Image.open(file).convert("RGB");
// 16-bit grey is round(v / 257).
TEST(io_picture, EveryKindHasPillowsValues) {
  const ParameterSet expected = read_npz(golden_picture("expected.npz"));
  EXPECT_GE(expected.size(), 34u);
  for (const auto& [name, rgb] : expected) {
    const at::Tensor found =
        with_channels(read_picture_file(golden_picture(name)).bytes, 3).permute({1, 2, 0});
    ASSERT_EQ(found.sizes(), rgb.sizes()) << name;
    EXPECT_EQ((found.to(at::kInt) - rgb.to(at::kInt)).abs().max().item<int>(), 0) << name;
  }
}

TEST(io_picture, GreyPalettesAreGreyAndColoursStayColoured) {
  const auto channels = [](const char* name) {
    return read_picture_file(golden_picture(name)).bytes.size(0);
  };
  for (const char* name : {"grey.png", "grey16.png", "grey-alpha.png", "bilevel.png", "grey.jpg",
                           "grey.bmp", "bilevel.bmp"}) {
    EXPECT_EQ(channels(name), 1) << name;
  }
  for (const char* name :
       {"palette.png", "palette.bmp", "cmyk.jpg", "ycck.jpg", "lossy.webp", "rgb565.bmp"}) {
    EXPECT_EQ(channels(name), 3) << name;
  }
}

TEST(io_picture, TransparencyIsSeenAndComposedOnlyWhenAsked) {
  for (const char* name : {"alpha.png", "grey-alpha.png", "palette-trns.png", "grey-trns.png",
                           "rgb-trns.png", "alpha.webp", "masks-with-alpha.bmp"}) {
    EXPECT_TRUE(read_picture_file(golden_picture(name)).alpha.defined()) << name;
    test::expect_error(ErrorKind::kBadFile, "transparent", [&] {
      without_alpha(read_picture_file(golden_picture(name)), AlphaRule::kRefuse, name);
    });
  }
  for (const char* name : {"rgb.png", "rgb32.bmp", "lossless.webp"}) {
    EXPECT_FALSE(read_picture_file(golden_picture(name)).alpha.defined()) << name << " is opaque";
  }
  Picture picture;
  picture.bytes = at::tensor({200, 200, 200}, at::kByte).view({1, 1, 3});
  picture.alpha = at::tensor({0, 51, 255}, at::kByte).view({1, 3});  // none, a fifth, all
  const auto values = [&](AlphaRule rule) {
    return without_alpha(picture, rule, "x").flatten().to(at::kLong);
  };
  EXPECT_TRUE(at::equal(values(AlphaRule::kDrop), at::tensor({200, 200, 200}, at::kLong)));
  EXPECT_TRUE(at::equal(values(AlphaRule::kWhite), at::tensor({255, 244, 200}, at::kLong)));
  EXPECT_TRUE(at::equal(values(AlphaRule::kBlack), at::tensor({0, 40, 200}, at::kLong)));
  test::expect_error(ErrorKind::kConfig, "unknown", [] { parse_alpha_rule("ignore"); });
}

TEST(io_picture, RotationsAndFramesAreReported) {
  EXPECT_EQ(read_picture_file(golden_picture("rotated.jpg")).orientation, 6);
  EXPECT_EQ(read_picture_file(golden_picture("rgb.jpg")).orientation, 1);
  EXPECT_EQ(read_picture_file(golden_picture("animated.webp")).frames, 2);
  EXPECT_EQ(read_picture_file(golden_picture("lossy.webp")).frames, 1);
  std::string png =
      content_of("grey.png");  // as an animated PNG of three frames with a rotation of 90 degrees
  const std::string tiff("MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x08\0\0", 22);
  png.insert(33, png_chunk("acTL", big_endian(3) + big_endian(0)) + png_chunk("eXIf", tiff));
  EXPECT_EQ(decode_picture(png, "x").frames, 3);
  EXPECT_EQ(decode_picture(png, "x").orientation, 8);
  png.replace(png.find(tiff), 12, "MM\0*\xff\xff\xff\xff\0\1\1\x12");
  EXPECT_THROW(decode_picture(png, "x"), Error) << "the checksum of the chunk is wrong now";
}

// Grey to colour and back as Pillow's convert("L"): L = (19595 R + 38470 G + 7471 B + 32768) >> 16.
TEST(io_picture, ChannelsAsPillowConvertsThem) {
  const at::Tensor colors = at::tensor({255, 0, 0, 10, 0, 255, 0, 20, 0, 0, 255, 30}, at::kByte)
                                .view({3, 1, 4});  // red, green, blue and (10, 20, 30)
  EXPECT_TRUE(at::equal(with_channels(colors, 1).flatten().to(at::kLong),
                        at::tensor({76, 150, 29, 18}, at::kLong)));
  const at::Tensor grey = at::tensor({7, 9}, at::kByte).view({1, 1, 2});
  EXPECT_TRUE(
      at::equal(with_channels(grey, 3), at::tensor({7, 9, 7, 9, 7, 9}, at::kByte).view({3, 1, 2})));
}

// A file cut anywhere is refused, whatever its format: nothing is filled in.
TEST(io_picture, CutFilesAreRefused) {
  for (const char* name :
       {"rgb.png", "interlaced.png", "rgb.jpg", "progressive.jpg", "cmyk.jpg", "lossy.webp",
        "lossless.webp", "animated.webp", "rgb.bmp", "palette.bmp"}) {
    const std::string whole = content_of(name);
    for (const std::size_t cut : {std::size_t{0}, std::size_t{3}, std::size_t{20}, whole.size() / 2,
                                  whole.size() - whole.size() / 8, whole.size() - 3}) {
      test::expect_error(ErrorKind::kBadFile, "a/b.x",
                         [&] { decode_picture(whole.substr(0, cut), "a/b.x"); });
    }
  }
}

TEST(io_picture, DamageInsideIsRefused) {
  std::string jpeg = content_of("rgb.jpg");
  jpeg.replace(jpeg.find("\xff\xda") + 40, 2, "\xff\xd9");  // the end, in the midst of the pixels
  test::expect_error(ErrorKind::kBadFile, "broken JPEG", [&] { decode_picture(jpeg, "x"); });
  std::string png = content_of("rgb.png");
  png[png.find("IDAT") + 10] ^= 1;
  test::expect_error(ErrorKind::kBadFile, "broken PNG", [&] { decode_picture(png, "x"); });
  std::string palette = content_of("palette-trns.png");  // three colours: index 3 is none
  const std::string row("\0\0\1\3\1", 5);
  std::string packed(64, '\0');
  uLongf size = packed.size();
  compress(reinterpret_cast<Bytef*>(packed.data()), &size,
           reinterpret_cast<const Bytef*>(row.data()), row.size());
  const std::size_t data = palette.find("IDAT") - 4;
  palette =
      palette.substr(0, data) + png_chunk("IDAT", packed.substr(0, size)) + png_chunk("IEND", "");
  test::expect_error(ErrorKind::kBadFile, "palette", [&] { decode_picture(palette, "x"); });
}

TEST(io_picture, SizesAreBounded) {
  const std::string end = png_chunk("IDAT", "") + png_chunk("IEND", "");
  test::expect_error(ErrorKind::kBadFile, "too large",
                     [&] { decode_picture(png_header(20000, 8) + end, "x"); });
  test::expect_error(ErrorKind::kBadFile, "too large",
                     [&] { decode_picture(png_header(16000, 16000) + end, "x"); });
  std::string bmp = content_of("rgb.bmp");
  bmp.replace(18, 8, std::string("\xff\xff\xff\x7f\xff\xff\xff\x7f", 8));
  test::expect_error(ErrorKind::kBadFile, "too large", [&] { decode_picture(bmp, "x"); });
  EXPECT_EQ(decode_picture(encode_png(at::zeros({3, 1, 1})), "x").bytes.sizes().vec(),
            (std::vector<std::int64_t>{3, 1, 1}));
}

TEST(io_picture, OtherContentIsCalledByItsName) {
  test::expect_error(ErrorKind::kBadFile, "empty", [] { decode_picture("", "x.png"); });
  test::expect_error(ErrorKind::kBadFile, "x.png: a GIF",
                     [] { decode_picture("GIF89a....", "x.png"); });
  test::expect_error(ErrorKind::kBadFile, "HTML",
                     [] { decode_picture("<!DOCTYPE html>", "x.jpg"); });
  test::expect_error(ErrorKind::kBadFile, "Git LFS",
                     [] { decode_picture("version https://git-lfs.github.com/spec/v1", "x.jpg"); });
  test::expect_error(ErrorKind::kBadFile, "AVIF", [] {
    decode_picture(std::string("\0\0\0\x1c"
                               "ftypavif",
                               12),
                   "x.jpg");
  });
  std::string rle = content_of("palette.bmp");
  rle[30] = 1;
  test::expect_error(ErrorKind::kBadFile, "run-length", [&] { decode_picture(rle, "x"); });
}

}  // namespace tiltflow
