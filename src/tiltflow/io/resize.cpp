#include "tiltflow/io/resize.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

constexpr int kPrecision = 22;  // Pillow's weights are whole multiples of 2^-22, which decides ties
constexpr std::int64_t kLongestSide = 65536;

struct Filter {
  double support;
  double (*weight)(double);
};

double box(double x) { return x > -0.5 && x <= 0.5 ? 1 : 0; }

double bicubic(double x) {
  constexpr double a = -0.5;
  x = std::abs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

// The input pixels first, first + 1, ... that make one output pixel, and their weights times 2^22.
struct Taps {
  std::int64_t first;
  std::vector<std::int64_t> weights;
};

std::vector<Taps> taps_of(std::int64_t from, std::int64_t to, const Filter& filter) {
  const double scale = static_cast<double>(from) / static_cast<double>(to);
  const double stretch = std::max(scale, 1.0);
  const double reach = filter.support * stretch;
  std::vector<Taps> out;
  for (std::int64_t j = 0; j < to; ++j) {
    const double center = (static_cast<double>(j) + 0.5) * scale;
    const auto first = std::max<std::int64_t>(0, static_cast<std::int64_t>(center - reach + 0.5));
    const auto last = std::min(from, static_cast<std::int64_t>(center + reach + 0.5));
    std::vector<double> weights;
    double sum = 0;
    for (std::int64_t i = first; i < last; ++i) {
      weights.push_back(filter.weight((static_cast<double>(i) - center + 0.5) / stretch));
      sum += weights.back();
    }
    Taps taps{first, {}};
    for (const double w : weights) {
      taps.weights.push_back(std::llround(std::ldexp(w / sum, kPrecision)));
    }
    out.push_back(std::move(taps));
  }
  return out;
}

std::uint8_t rounded(std::int64_t sum) {
  constexpr std::int64_t kHalf = std::int64_t{1} << (kPrecision - 1);
  return static_cast<std::uint8_t>(std::clamp<std::int64_t>((sum + kHalf) >> kPrecision, 0, 255));
}

// [rows, from] -> [rows, to]
at::Tensor resize_rows(const at::Tensor& picture, const std::vector<Taps>& taps) {
  const std::int64_t rows = picture.size(0);
  const auto to = static_cast<std::int64_t>(taps.size());
  at::Tensor out = at::empty({rows, to}, at::kByte);
  for (std::int64_t y = 0; y < rows; ++y) {
    const std::uint8_t* in = picture.const_data_ptr<std::uint8_t>() + y * picture.size(1);
    std::uint8_t* result = out.data_ptr<std::uint8_t>() + y * to;
    for (const Taps& tap : taps) {
      std::int64_t sum = 0;
      for (std::size_t k = 0; k < tap.weights.size(); ++k) {
        sum += tap.weights[k] * in[tap.first + static_cast<std::int64_t>(k)];
      }
      *result++ = rounded(sum);
    }
  }
  return out;
}

// [C, from, W] -> [C, to, W]
at::Tensor resize_columns(const at::Tensor& picture, const std::vector<Taps>& taps) {
  const std::int64_t width = picture.size(2);
  at::Tensor out =
      at::empty({picture.size(0), static_cast<std::int64_t>(taps.size()), width}, at::kByte);
  std::uint8_t* result = out.data_ptr<std::uint8_t>();
  std::vector<std::int64_t> sums(static_cast<std::size_t>(width));
  for (std::int64_t c = 0; c < picture.size(0); ++c) {
    for (const Taps& tap : taps) {
      std::fill(sums.begin(), sums.end(), 0);
      for (std::size_t k = 0; k < tap.weights.size(); ++k) {
        const std::int64_t row = tap.first + static_cast<std::int64_t>(k);
        const std::uint8_t* in =
            picture.const_data_ptr<std::uint8_t>() + (c * picture.size(1) + row) * width;
        for (std::size_t x = 0; x < sums.size(); ++x) sums[x] += tap.weights[k] * in[x];
      }
      for (const std::int64_t sum : sums) *result++ = rounded(sum);
    }
  }
  return out;
}

}  // namespace

at::Tensor resize(const at::Tensor& picture, std::int64_t height, std::int64_t width,
                  const std::string& name) {
  const Filter filter = name == "box" ? Filter{0.5, box} : Filter{2, bicubic};
  at::Tensor x = picture.contiguous();
  if (width != x.size(2)) {
    const at::Tensor rows = resize_rows(x.view({-1, x.size(2)}), taps_of(x.size(2), width, filter));
    x = rows.view({x.size(0), x.size(1), width});  // [C H, width] -> [C, H, width]
  }
  if (height != x.size(1)) x = resize_columns(x, taps_of(x.size(1), height, filter));
  return x;
}

at::Tensor center_crop(const at::Tensor& picture, std::int64_t size, const std::string& name) {
  at::Tensor x = picture;
  const auto side = [&] { return std::min(x.size(1), x.size(2)); };
  while (side() >= 2 * size) x = resize(x, x.size(1) / 2, x.size(2) / 2, "box");
  const double scale = static_cast<double>(size) / static_cast<double>(side());
  const auto scaled = [&](std::int64_t length) {
    return static_cast<std::int64_t>(std::nearbyint(static_cast<double>(length) * scale));
  };
  const std::int64_t height = scaled(x.size(1));
  const std::int64_t width = scaled(x.size(2));
  if (std::max(height, width) > kLongestSide) {
    fail(ErrorKind::kBadFile,
         cat(name, ": ", picture.size(1), " x ", picture.size(2),
             " pixels are too narrow a strip to be cropped to ", size, " x ", size));
  }
  x = resize(x, height, width, "bicubic");
  return x.narrow(1, (x.size(1) - size) / 2, size)
      .narrow(2, (x.size(2) - size) / 2, size)
      .contiguous();
}

}  // namespace tiltflow
