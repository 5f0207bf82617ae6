// Charts to draw, and what stands in markup.
#pragma once

#include <limits>

#include "tests/support.h"
#include "tiltflow/report/chart.h"

namespace tiltflow::test {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

inline bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

inline std::size_t count_of(const std::string& text, const std::string& part) {
  std::size_t n = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++n;
  return n;
}

inline Chart two_curves() {
  Chart chart{"Control & \"cost\" <of all>", {"optimiser step"}, {"control cost", "nats", true}};
  chart.series.push_back({"first", {0, 1, 2, 3}, {0.1, 1, 10, 100}, {0.01, 0.1, 1, 10}});
  chart.series.push_back({"second, with a comma", {0, 1, 2, 3}, {0.5, kNan, 2, -1}});
  chart.series.push_back({"never there", {}, {}});
  chart.series.push_back({"nothing finite", {1, 2}, {kNan, kNan}});
  return chart;
}

}  // namespace tiltflow::test
