// Where the parts of a plot stand: title above, plotting area, labels of the axes, legend below.
// What is drawn there: svg.cpp.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "tiltflow/report/chart.h"
#include "tiltflow/report/svg_axis.h"

namespace tiltflow::svg {

// Lengths in units of the picture.
constexpr double kWidth = 440;
constexpr double kTitleSize = 14;
constexpr double kTextSize = 12.5;
constexpr double kLine = 17;    // of text
constexpr double kSwatch = 34;  // of a legend entry, with the gap to its name
constexpr double kRight = 22;   // right of the plotting area: room for half of the last number

struct Entry {
  std::size_t series;
  std::vector<std::string> lines;
  double x, y;  // of its first line
};

// Where everything stands; all lengths in units of the picture.
struct Layout {
  std::vector<std::size_t> shown;  // series with points
  Axis x, y;
  std::vector<std::string> title, x_label, y_label;
  std::vector<Entry> legend;
  double left = 0;
  double top = 0;
  double bottom = 0;
  double height = 0;  // of the plotting area, and of the picture
  double right() const { return kWidth - kRight; }
  double px(double v) const { return left + x.place(v) * (right() - left); }
  double py(double v) const { return bottom - y.place(v) * (bottom - top); }
  // A value outside is drawn at the edge: bands and bars may end beyond the data. NaN: below a
  // logarithmic axis.
  double py_inside(double v) const {
    const double at = y.place(v);
    return bottom - std::clamp(std::isnan(at) ? 0.0 : at, 0.0, 1.0) * (bottom - top);
  }
};

// The error of point i, 0 when there is none.
double error_of(const std::vector<double>& errors, std::size_t i);

// `chart` has a point to draw.
Layout layout_of(const Chart& chart);

}  // namespace tiltflow::svg
