// Plots as inline SVG: lines with error bands, step histograms. No scripts, no files beside.
#pragma once

#include <string>
#include <vector>

namespace tiltflow {

struct Series {
  std::string name;
  std::vector<double> x, y, error;  // error: half-width of a band, empty for none
  bool steps = false;               // y[i] holds over [x[i], x[i+1]]; x has one more entry
  bool dashed = false;
};

struct Chart {
  std::string title, x_label, y_label;
  std::vector<Series> series;
  bool log_y = false;  // non-positive values are left out
  bool log_x = false;  // likewise
  bool marks = false;  // a mark at every point, with the series' name as its tool tip
  bool lines = true;
  std::vector<double> x_range, y_range;  // low and high; empty: those of the data. Points outside are left out
};

// 520 x 300 pixels, higher when the names of the series need more than one line. Empty string when there is nothing to draw. Non-finite points are left out.
std::string svg_chart(const Chart& chart);

}  // namespace tiltflow
