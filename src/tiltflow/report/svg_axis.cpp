#include "tiltflow/report/svg_axis.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "tiltflow/base/strings.h"

namespace tiltflow {
namespace {

constexpr double kLargest = 1e300;  // beyond, sums of ends overflow

std::string superscript(int n) {
  static const std::array<const char*, 10> digits{"⁰", "¹", "²", "³", "⁴", "⁵", "⁶", "⁷", "⁸", "⁹"};
  std::string out = n < 0 ? "⁻" : "";
  for (const char c : std::to_string(std::abs(n))) out += digits[static_cast<std::size_t>(c - '0')];
  return out;
}

int exponent_of(double v) {
  return v == 0 ? 0 : static_cast<int>(std::floor(std::log10(std::abs(v)) + 1e-9));
}

// 1, 2 or 5 times a power of ten.
double round_step(double raw) {
  const double power = std::pow(10, exponent_of(raw));
  const double lead = raw / power;
  return (lead < 1.5 ? 1 : lead < 3.5 ? 2 : lead < 7.5 ? 5 : 10) * power;
}

struct Labelled {
  double value;
  std::string label;
};

std::vector<Labelled> linear_numbers(double low, double high, bool whole, int wanted) {
  double step = round_step((high - low) / wanted);
  if (whole) step = std::max(1.0, std::round(step));
  if (!(step > 0)) return {};
  const double largest = std::max(std::abs(low), std::abs(high));
  std::vector<Labelled> out;
  const double first = std::ceil(low / step - 1e-9);
  for (double i = first; i * step <= high + 1e-9 * step && out.size() < 100; ++i) {
    const double value = i == 0 ? 0 : i * step;
    out.push_back({value, axis_number(value, step, largest)});
  }
  return out;
}

// A lead from 1 to 9 times ten to the n.
std::string power_label(int lead, int n, bool plain) {
  if (plain) return fixed(lead * std::pow(10, n), std::max(0, -n));
  const std::string power = "10" + superscript(n);
  return lead == 1 ? power : cat(lead, "×", power);
}

void add_log_ticks(Axis& axis, int wanted) {
  const int first = static_cast<int>(std::floor(axis.low));
  const int last = static_cast<int>(std::ceil(axis.high));
  const double decades = axis.high - axis.low;
  const bool plain = axis.low > -3.3 && axis.high < 4.3;
  const int every = std::max(1, static_cast<int>(std::ceil(decades / wanted)));
  std::vector<int> labelled{1};
  if (decades < 2.2) labelled = {1, 2, 5};
  if (decades < 0.9) labelled = {1, 2, 3, 4, 5, 6, 8};
  std::size_t labels = 0;
  for (int n = first; n <= last; ++n) {
    for (int lead = 1; lead < 10; ++lead) {
      const double at = axis.place(lead * std::pow(10, n));
      if (!(at >= -1e-9 && at <= 1 + 1e-9)) continue;
      const bool named =
          n % every == 0 && std::find(labelled.begin(), labelled.end(), lead) != labelled.end();
      if (!named && decades > 8 && lead > 1) continue;  // minor ticks would run together
      axis.ticks.push_back({at, named ? power_label(lead, n, plain) : ""});
      labels += named ? 1 : 0;
    }
  }
  if (labels >= 3 || decades > 1) return;
  for (Tick& tick : axis.ticks) {
    tick.label.clear();  // a narrow range: round numbers of a plain axis, at their places
  }
  const std::vector<Labelled> numbers =
      linear_numbers(std::pow(10, axis.low), std::pow(10, axis.high), false, wanted);
  for (const Labelled& number : numbers) {
    if (number.value > 0) axis.ticks.push_back({axis.place(number.value), number.label});
  }
}

}  // namespace

std::string axis_number(double value, double step, double largest) {
  const int size = exponent_of(largest);
  double unit = 1;
  std::string suffix;
  if (largest >= 1e15 || largest < 1e-3) {
    unit = std::pow(10, size);
    suffix = "×10" + superscript(size);
  } else if (largest >= 1e4) {
    static const std::array<const char*, 5> names{"", "k", "M", "G", "T"};
    const int power = size / 3;
    unit = std::pow(10, 3 * power);
    suffix = names[static_cast<std::size_t>(power)];
  }
  if (value == 0) return "0";
  const int decimals = std::max(0, -exponent_of(step / unit));
  std::string digits = fixed(value / unit, decimals);
  if (digits[0] == '-') digits = "−" + digits.substr(1);
  return digits + suffix;
}

double Axis::place(double value) const {
  const double v = logarithmic
                       ? (value > 0 ? std::log10(value) : std::numeric_limits<double>::quiet_NaN())
                       : value;
  return (v - low) / (high - low);
}

Axis make_axis(double low, double high, bool logarithmic, bool whole, double pad, int wanted) {
  low = std::clamp(low, -kLargest, kLargest);
  high = std::clamp(high, -kLargest, kLargest);
  Axis axis;
  axis.logarithmic = logarithmic;
  axis.low = logarithmic ? std::log10(low) : low;
  axis.high = logarithmic ? std::log10(high) : high;
  const double size = std::max(std::abs(axis.low), std::abs(axis.high));
  if (!(axis.high - axis.low > 1e-9 * size)) {
    const double room = logarithmic || whole || size == 0 ? 0.5 : 0.5 * size;
    axis.low -= room;
    axis.high += room;
  }
  const double more = pad * (axis.high - axis.low);
  axis.low -= more;
  axis.high += more;
  if (logarithmic) {
    add_log_ticks(axis, wanted);
  } else {
    for (const Labelled& n : linear_numbers(axis.low, axis.high, whole, wanted)) {
      axis.ticks.push_back({axis.place(n.value), n.label});
    }
  }
  return axis;
}

}  // namespace tiltflow
