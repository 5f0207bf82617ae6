#include <algorithm>
#include <cmath>

#include "tests/report/markup.h"
#include "tests/support.h"
#include "tiltflow/report/svg_axis.h"

namespace tiltflow {
namespace {

using test::has;

std::vector<std::string> tick_texts(const Axis& axis) {
  std::vector<std::string> out;
  for (const Tick& tick : axis.ticks) {
    if (!tick.label.empty()) out.push_back(tick.label);
  }
  return out;
}

}  // namespace

TEST(report_svg_axis, NumbersAreReadable) {
  EXPECT_EQ(tick_texts(make_axis(0, 0.5, false, false, 0, 5)),
            (std::vector<std::string>{"0", "0.1", "0.2", "0.3", "0.4", "0.5"}));
  EXPECT_EQ(tick_texts(make_axis(0, 2.5e6, false, false, 0, 5)),
            (std::vector<std::string>{"0", "0.5M", "1.0M", "1.5M", "2.0M", "2.5M"}));
  EXPECT_EQ(tick_texts(make_axis(-2e-5, 2e-5, false, false, 0, 4)),
            (std::vector<std::string>{"−2×10⁻⁵", "−1×10⁻⁵", "0", "1×10⁻⁵", "2×10⁻⁵"}));
  EXPECT_EQ(tick_texts(make_axis(0, 3, false, true, 0.03, 6)),
            (std::vector<std::string>{"0", "1", "2", "3"}))
      << "steps are whole";
  EXPECT_EQ(tick_texts(make_axis(0.001, 10, true, false, 0, 5)),
            (std::vector<std::string>{"0.001", "0.01", "0.1", "1", "10"}));
  EXPECT_EQ(tick_texts(make_axis(1e-7, 1e2, true, false, 0, 5)),
            (std::vector<std::string>{"10⁻⁶", "10⁻⁴", "10⁻²", "10⁰", "10²"}));
  EXPECT_GE(tick_texts(make_axis(0.98, 1.02, true, false, 0, 5)).size(), 3u)
      << "a narrow logarithmic range still has numbers";
  for (const double v : {0.0, 1.0, -3e-9, 7e12, 1e300}) {
    EXPECT_GE(tick_texts(make_axis(v, v, false, false, 0.05, 5)).size(), 1u) << v;
  }
}

TEST(report_svg_axis, LogarithmicAxesHaveMinorTicksAtTheirPlaces) {
  const Axis axis = make_axis(1, 1000, true, false, 0, 5);
  const auto minor = std::count_if(axis.ticks.begin(), axis.ticks.end(),
                                   [](const Tick& t) { return t.label.empty(); });
  EXPECT_EQ(minor, 24);
  EXPECT_NEAR(axis.place(10), 1.0 / 3, 1e-12);
  EXPECT_TRUE(std::isnan(axis.place(0)));
}

}  // namespace tiltflow
