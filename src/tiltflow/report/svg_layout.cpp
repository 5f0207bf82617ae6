#include "tiltflow/report/svg_layout.h"

#include <limits>
#include <utility>

#include "tiltflow/report/svg_text.h"

namespace tiltflow::svg {
namespace {

constexpr double kPlotHeight = 230;
constexpr double kGap = 14;  // between legend entries

struct Range {
  double low = std::numeric_limits<double>::infinity();
  double high = -std::numeric_limits<double>::infinity();
  bool whole = true;  // all values are whole numbers
  void add(const AxisLabel& axis, double v) {
    if (!std::isfinite(v) || (axis.logarithmic && !(v > 0))) return;
    low = std::min(low, v);
    high = std::max(high, v);
    whole = whole && v == std::round(v);
  }
};

std::pair<Range, Range> ranges_of(const Chart& chart) {
  Range x;
  Range y;
  for (const Series& s : chart.series) {
    for (std::size_t i = 0; i < std::min(s.x.size(), s.y.size()); ++i) {
      if (!is_drawn(chart, s.x[i], s.y[i])) continue;
      x.add(chart.x, s.x[i]);
      if (s.steps && i + 1 < s.x.size()) x.add(chart.x, s.x[i + 1]);
      for (const double sign : {-1.0, 0.0, 1.0}) {
        y.add(chart.y, s.y[i] + sign * error_of(s.error, i));
      }
      if (s.x_error.empty()) continue;
      for (const double sign : {-1.0, 1.0}) x.add(chart.x, s.x[i] + sign * error_of(s.x_error, i));
    }
    if (s.steps) y.add(chart.y, 0);  // densities stand on zero
  }
  return {x, y};
}

Axis axis_of(const AxisLabel& label, const Range& data, double pad, int wanted) {
  if (label.range.size() == 2) {
    return make_axis(label.range[0], label.range[1], label.logarithmic, false, 0, wanted);
  }
  return make_axis(data.low, data.high, label.logarithmic, data.whole && !label.logarithmic, pad,
                   wanted);
}

// Fewer numbers until none touches its neighbour.
Axis fitting_x_axis(const Chart& chart, const Range& data, double pad, double width) {
  for (int wanted = 6; wanted > 1; --wanted) {
    Axis axis = axis_of(chart.x, data, pad, wanted);
    double end = -1e9;
    bool fits = true;
    for (const Tick& tick : axis.ticks) {
      if (tick.label.empty()) continue;
      const double half = 0.5 * text_width(tick.label, kTextSize);
      fits = fits && tick.at * width - half > end + 6;
      end = tick.at * width + half;
    }
    if (fits) return axis;
  }
  Axis axis = axis_of(chart.x, data, pad, 2);  // the first and the last number remain
  std::vector<Tick*> named;
  for (Tick& tick : axis.ticks) {
    if (!tick.label.empty()) named.push_back(&tick);
  }
  for (std::size_t i = 1; i + 1 < named.size(); ++i) named[i]->label.clear();
  return axis;
}

// Width of an entry with its gap: its own for a few, that of the widest for many, which then stand
// in columns.
double entry_width(const Chart& chart, const Layout& l, const std::vector<std::string>& lines) {
  double own = 0;
  for (const std::string& line : lines) own = std::max(own, text_width(line, kTextSize));
  double widest = own;
  for (const std::size_t i : l.shown) {
    widest = std::max(widest, text_width(chart.series[i].name, kTextSize));
  }
  const bool columns = l.shown.size() > 3 && kSwatch + widest + kGap <= (kWidth - 20) / 2;
  return kSwatch + (columns ? widest : own) + kGap;
}

// Entries side by side while they fit, in rows below `y`; returns where the next row would begin.
double place_legend(const Chart& chart, Layout& l, double y) {
  const bool named = l.shown.size() > 1 || !chart.series[l.shown[0]].name.empty();
  if (!named) return y;
  double x = 10;
  std::size_t row_lines = 0;
  for (const std::size_t i : l.shown) {
    const std::vector<std::string> lines =
        wrapped(chart.series[i].name, kWidth - 20 - kSwatch, kTextSize);
    const double width = entry_width(chart, l, lines);
    if (x > 10 && x + width - kGap > kWidth - 10) {
      y += kLine * static_cast<double>(row_lines);
      x = 10;
      row_lines = 0;
    }
    l.legend.push_back({i, lines, x, y});
    row_lines = std::max(row_lines, std::max<std::size_t>(1, lines.size()));
    x += width;
  }
  return y + kLine * static_cast<double>(row_lines);
}

}  // namespace

double error_of(const std::vector<double>& errors, std::size_t i) {
  return i < errors.size() && std::isfinite(errors[i]) ? errors[i] : 0;
}

Layout layout_of(const Chart& chart) {
  Layout l;
  for (std::size_t i = 0; i < chart.series.size(); ++i) {
    if (has_points(chart, chart.series[i])) l.shown.push_back(i);
  }
  const auto [x, y] = ranges_of(chart);
  const bool steps = std::any_of(chart.series.begin(), chart.series.end(),
                                 [](const Series& s) { return s.steps; });
  l.y = axis_of(chart.y, y, steps ? 0 : 0.05, 5);
  double numbers = 0;
  for (const Tick& tick : l.y.ticks) numbers = std::max(numbers, text_width(tick.label, kTextSize));
  l.title = wrapped(chart.title, kWidth - 20, kTitleSize * 1.08);  // bold is wider
  l.y_label = wrapped(axis_text(chart.y), kPlotHeight, kTextSize);
  l.left = 8 + kLine * static_cast<double>(l.y_label.size()) + numbers + 8;
  l.top = 15 + 19 * static_cast<double>(l.title.size());
  l.bottom = l.top + kPlotHeight;
  l.x = fitting_x_axis(chart, x, steps ? 0 : 0.03, l.right() - l.left);
  l.x_label = wrapped(axis_text(chart.x), l.right() - l.left, kTextSize);
  const double below = l.bottom + 20 + kLine * static_cast<double>(l.x_label.size());
  l.height = place_legend(chart, l, below + 18) - 6;
  return l;
}

}  // namespace tiltflow::svg
