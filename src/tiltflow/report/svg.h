// Plots as SVG: lines with error bands, bars, clouds of points, step histograms. Every file stands
// alone: no scripts, no styles from elsewhere. Title above, legend below: neither can cover the
// plotting area.
#pragma once

#include <string>

#include "tiltflow/report/chart.h"

namespace tiltflow {

// A well-formed SVG document, 440 units wide and as high as its text needs; "" when there is
// nothing to draw. The plotting area is the rect of class "frame", the legend the group of class
// "legend". Only series with points are named. Lines break at non-finite points; a point alone
// between gaps gets a mark. Colours differ for colour-blind readers too, and every series has
// dashes and marks of its own. Parts of series i have the class "s0" to "s7" for pages with a dark
// scheme.
std::string svg_chart(const Chart& chart);

}  // namespace tiltflow
