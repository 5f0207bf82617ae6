#include "tiltflow/io/resize.h"

#include <algorithm>
#include <cmath>

#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

constexpr double kOne = 1 << 22;  // Pillow's weights are whole multiples of 1 / kOne, which decides ties

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

// [from, to]: column j holds the weights of the input pixels in output pixel j.
at::Tensor weights(std::int64_t from, std::int64_t to, const Filter& filter) {
  at::Tensor out = at::zeros({from, to}, at::kDouble);
  auto w = out.accessor<double, 2>();
  const double scale = static_cast<double>(from) / static_cast<double>(to), stretch = std::max(scale, 1.0), reach = filter.support * stretch;
  for (std::int64_t j = 0; j < to; ++j) {
    const double center = (static_cast<double>(j) + 0.5) * scale;
    const auto first = std::max<std::int64_t>(0, static_cast<std::int64_t>(center - reach + 0.5)), last = std::min(from, static_cast<std::int64_t>(center + reach + 0.5));
    double sum = 0;
    for (std::int64_t i = first; i < last; ++i) sum += w[i][j] = filter.weight((static_cast<double>(i) - center + 0.5) / stretch);
    for (std::int64_t i = first; i < last; ++i) w[i][j] = std::round(w[i][j] / sum * kOne) / kOne;
  }
  return out;
}

at::Tensor to_byte_values(const at::Tensor& x) { return (x + 0.5).floor().clamp(0, 255); }

}  // namespace

at::Tensor resize(const at::Tensor& picture, std::int64_t height, std::int64_t width, const std::string& name) {
  const Filter filter = name == "box" ? Filter{0.5, box} : Filter{2, bicubic};
  at::Tensor x = picture.to(at::kDouble);
  if (width != x.size(2)) x = to_byte_values(x.matmul(weights(x.size(2), width, filter)));
  if (height != x.size(1)) x = to_byte_values(weights(x.size(1), height, filter).t().matmul(x));
  return x.to(at::kByte);
}

at::Tensor center_crop(const at::Tensor& picture, std::int64_t size) {
  at::Tensor x = picture;
  const auto side = [&] { return std::min(x.size(1), x.size(2)); };
  while (side() >= 2 * size) x = resize(x, x.size(1) / 2, x.size(2) / 2, "box");
  const double scale = static_cast<double>(size) / static_cast<double>(side());
  const auto scaled = [&](std::int64_t length) { return static_cast<std::int64_t>(std::nearbyint(static_cast<double>(length) * scale)); };
  x = resize(x, scaled(x.size(1)), scaled(x.size(2)), "bicubic");
  return x.narrow(1, (x.size(1) - size) / 2, size).narrow(2, (x.size(2) - size) / 2, size).contiguous();
}

}  // namespace tiltflow
