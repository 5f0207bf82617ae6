// What a plot shows, as data: series over two axes with labels and units. svg.h draws it, chart_csv
// writes its numbers.
#pragma once

#include <string>
#include <vector>

namespace tiltflow {

struct Series {
  std::string name{};  // in the legend; may be empty when it is the only one
  std::vector<double> x{};
  std::vector<double> y{};
  std::vector<double> error{};    // standard errors of y, half-width of band or bar; empty: none
  bool steps = false;             // y[i] holds over [x[i], x[i+1]]; x has one more entry
  std::vector<double> x_error{};  // standard errors of x; empty: none
};

struct AxisLabel {
  std::string text{};
  std::string unit{};        // "" for pure numbers
  bool logarithmic = false;  // values of zero and below are not drawn
  std::vector<double>
      range{};  // low and high; empty: those of the data. Points outside are not drawn
};

struct Chart {
  std::string title{};
  AxisLabel x{};
  AxisLabel y{};
  std::vector<Series> series{};
  bool marks =
      false;  // a mark at every point, with its numbers as tool tip; few points are marked anyway
  bool lines = true;   // false: a cloud of points
  std::string note{};  // a sentence for the caption
};

// "control cost (nats, log scale)": text, unit, and that the axis is logarithmic.
std::string axis_text(const AxisLabel& axis);

// Is this point drawn: finite, positive on logarithmic axes, inside the given ranges?
bool is_drawn(const Chart& chart, double x, double y);
// Has this series, or any, a point to draw?
bool has_points(const Chart& chart, const Series& series);
bool has_points(const Chart& chart);

// Series of more than `most` points become the extremes of `most` / 2 stretches, so that peaks
// stay; the note says so.
Chart thinned(Chart chart, std::size_t most = 1000);

// Every number of the chart at full precision, one row a point: series, x, y, standard errors where
// any series has them. The header holds labels and units. Non-finite numbers are written as nan,
// inf, -inf. RFC 4180 quoting.
std::string chart_csv(const Chart& chart);

}  // namespace tiltflow
