#include "tiltflow/eval/svg.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "tiltflow/base/strings.h"

namespace tiltflow {
namespace {

constexpr double kWidth = 520, kPlot = 228, kLeft = 62, kRight = 12, kBottom = 42, kLegendLine = 14;
const char* const kColors[] = {"#1f6feb", "#d1570a", "#2c974b", "#8250df", "#bf3989", "#6e7781", "#0a7e8c", "#9a6700", "#cf222e", "#54aeff", "#4ac26b", "#e16f24"};

struct Range {
  double low = std::numeric_limits<double>::infinity(), high = -std::numeric_limits<double>::infinity();
  void add(double v) {
    if (std::isfinite(v)) low = std::min(low, v), high = std::max(high, v);
  }
  bool empty() const { return !(low <= high); }
  void widen() {
    if (high - low < 1e-12 * (1 + std::abs(high))) low -= 0.5, high += 0.5;
  }
};

// Round tick positions: about five multiples of 1, 2 or 5 times a power of ten.
std::vector<double> ticks(const Range& r) {
  const double raw = (r.high - r.low) / 5, power = std::pow(10, std::floor(std::log10(raw)));
  const double step = raw / power < 1.5 ? power : raw / power < 3.5 ? 2 * power : raw / power < 7.5 ? 5 * power : 10 * power;
  std::vector<double> out;
  for (double v = std::ceil(r.low / step) * step; v <= r.high + 1e-9 * step; v += step) out.push_back(std::abs(v) < 1e-9 * step ? 0 : v);
  return out;
}

}  // namespace

std::string svg_chart(const Chart& chart) {
  const auto scaled = [](double v, bool logarithmic) { return logarithmic ? (v > 0 ? std::log10(v) : std::numeric_limits<double>::quiet_NaN()) : v; };
  const auto to_axis = [&](double y) { return scaled(y, chart.log_y); };
  const auto to_x = [&](double x) { return scaled(x, chart.log_x); };
  Range xs, ys;
  for (const Series& s : chart.series) {
    for (const double x : s.x) xs.add(to_x(x));
    for (std::size_t i = 0; i < s.y.size(); ++i) {
      ys.add(to_axis(s.y[i]));
      if (!s.error.empty() && !chart.log_y) ys.add(s.y[i] - s.error[i]), ys.add(s.y[i] + s.error[i]);
    }
  }
  if (chart.x_range.size() == 2) xs.low = to_x(chart.x_range[0]), xs.high = to_x(chart.x_range[1]);
  if (chart.y_range.size() == 2) ys.low = to_axis(chart.y_range[0]), ys.high = to_axis(chart.y_range[1]);
  if (xs.empty() || ys.empty()) return "";
  xs.widen();
  ys.widen();
  // Names stand in lines above the plot (one line inside it, when one is enough).
  const bool named = chart.series.size() > 1 || !chart.series[0].name.empty();
  const auto text_width = [](const Series& s) { return 7.0 * static_cast<double>(s.name.size()) + 18; };
  const bool many = chart.series.size() > std::size(kColors);
  static const char* const kForms[] = {"&#9679; ", "&#9632; ", "&#9650; "};
  int legend_lines = 0;
  double used = kWidth;
  for (const Series& s : chart.series) {
    if (used + text_width(s) > kWidth - kLeft - kRight) ++legend_lines, used = 0;
    used += text_width(s);
  }
  const double kTop = 30 + (legend_lines > 1 ? kLegendLine * legend_lines : 0), kHeight = kTop + kPlot + kBottom;
  const double pad = 0.05 * (ys.high - ys.low);
  if (chart.y_range.size() != 2) ys.low -= pad, ys.high += pad;
  const auto shown = [&](double x, double y) { return std::isfinite(x) && std::isfinite(y) && x >= xs.low - 1e-9 && x <= xs.high + 1e-9 && y >= ys.low - 1e-9 && y <= ys.high + 1e-9; };
  const auto px = [&](double x) { return kLeft + (x - xs.low) / (xs.high - xs.low) * (kWidth - kLeft - kRight); };
  const auto py = [&](double y) { return kHeight - kBottom - (y - ys.low) / (ys.high - ys.low) * (kHeight - kTop - kBottom); };
  const auto point = [&](double x, double y) { return fixed(px(x), 1) + "," + fixed(py(y), 1) + " "; };

  std::string out = cat("<svg viewBox='0 0 ", kWidth, " ", kHeight, "' width='", kWidth, "' height='", kHeight, "' role='img' aria-label='", html_escape(chart.title), "'>");
  out += cat("<text x='", kLeft, "' y='18' class='title'>", html_escape(chart.title), "</text>");
  for (const double v : ticks(ys)) {
    out += cat("<line x1='", kLeft, "' x2='", kWidth - kRight, "' y1='", fixed(py(v), 1), "' y2='", fixed(py(v), 1), "' class='grid'/>");
    out += cat("<text x='", kLeft - 6, "' y='", fixed(py(v) + 4, 1), "' class='tick' text-anchor='end'>", chart.log_y ? compact(std::pow(10, v), 2) : compact(v, 4), "</text>");
  }
  for (const double v : ticks(xs)) out += cat("<text x='", fixed(px(v), 1), "' y='", kHeight - kBottom + 16, "' class='tick' text-anchor='middle'>", chart.log_x ? compact(std::pow(10, v), 2) : compact(v, 4), "</text>");
  out += cat("<text x='", (kLeft + kWidth - kRight) / 2, "' y='", kHeight - 8, "' class='tick' text-anchor='middle'>", html_escape(chart.x_label), "</text>");

  std::size_t index = 0;
  double legend = kLeft + 8, legend_y = legend_lines > 1 ? 32 : kTop + 8;
  for (const Series& s : chart.series) {
    const char* color = kColors[index % std::size(kColors)];
    const std::size_t form = index++ / std::size(kColors) % 3;  // of the marks, when colours repeat
    std::string line, upper, lower;
    for (std::size_t i = 0; i < s.y.size(); ++i) {
      const double y = to_axis(s.y[i]);
      if (!shown(to_x(s.x[i]), y)) continue;
      line += point(to_x(s.x[i]), y);
      if (s.steps && i + 1 < s.x.size()) line += point(to_x(s.x[i + 1]), y);
      if (!s.error.empty() && !chart.log_y) {
        upper += point(to_x(s.x[i]), y + s.error[i]);
        lower = point(to_x(s.x[i]), y - s.error[i]) + lower;
      }
    }
    if (!upper.empty()) out += cat("<polygon points='", upper, lower, "' fill='", color, "' opacity='0.15'/>");
    if (chart.lines) out += cat("<polyline points='", line, "' fill='none' stroke='", color, "' stroke-width='1.6'", s.dashed ? " stroke-dasharray='5 3'" : "", "/>");
    if (chart.marks) {
      for (std::size_t i = 0; i < s.y.size(); ++i) {
        const double x = to_x(s.x[i]), y = to_axis(s.y[i]);
        if (!shown(x, y)) continue;
        const double r = chart.lines ? 3.5 : 1.5, at_x = px(x), at_y = py(y);
        std::string mark = form == 0 ? cat("<circle cx='", fixed(at_x, 1), "' cy='", fixed(at_y, 1), "' r='", r)
                         : form == 1 ? cat("<rect x='", fixed(at_x - r, 1), "' y='", fixed(at_y - r, 1), "' width='", 2 * r, "' height='", 2 * r)
                                     : cat("<polygon points='", fixed(at_x - r - 1, 1), ",", fixed(at_y + r, 1), " ", fixed(at_x + r + 1, 1), ",", fixed(at_y + r, 1), " ", fixed(at_x, 1), ",", fixed(at_y - r - 1, 1));
        out += cat(mark, "' fill='", color, "'", s.name.empty() ? "/>" : cat("><title>", html_escape(s.name), "</title></", form == 0 ? "circle" : form == 1 ? "rect" : "polygon", ">"));
      }
    }
    if (named) {
      if (legend_lines > 1 && legend + text_width(s) > kWidth - kRight + 8 && legend > kLeft + 8) legend = kLeft + 8, legend_y += kLegendLine;
      out += cat("<text x='", fixed(legend, 0), "' y='", fixed(legend_y, 0), "' class='tick' fill='", color, "' style='fill:", color, "'>", many && chart.marks ? kForms[form] : "", html_escape(s.name), "</text>");
      legend += text_width(s);
    }
  }
  return out + "</svg>";
}

}  // namespace tiltflow
