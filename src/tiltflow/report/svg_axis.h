// Axes of plots: which numbers stand at which places, and how they are written.
#pragma once

#include <string>
#include <vector>

namespace tiltflow {

struct Tick {
  double at = 0;      // place along the axis, 0 to 1
  std::string label;  // "" for a minor tick
};

struct Axis {
  double low = 0;
  double high = 1;  // of the values, or of their decimal logarithms
  bool logarithmic = false;
  std::vector<Tick> ticks;
  double place(double value) const;  // 0 to 1 along the axis, beyond for values outside; NaN when a
                                     // log axis cannot show it
};

// About `wanted` labelled ticks at round numbers; on logarithmic axes at decades with minor ticks
// between. `pad`: room beyond the data, a share of their range. Equal ends are widened. low and
// high are finite, and positive when logarithmic. whole: ticks at whole numbers only.
Axis make_axis(double low, double high, bool logarithmic, bool whole, double pad, int wanted);

// The numbers at multiples of `step`, all written alike: 0.3 (never 0.30000000000000004),
// 20k, 1.5M, 3×10⁻⁵.
std::string axis_number(double value, double step, double largest);

}  // namespace tiltflow
