#include <algorithm>
#include <cmath>

#include "tests/report/markup.h"
#include "tests/support.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/report/chart.h"

namespace tiltflow {
namespace {

using test::has;
using test::two_curves;

}  // namespace

TEST(report_chart, HoldsEveryNumberWithUnits) {
  const std::string csv = chart_csv(two_curves());
  const std::vector<std::string> lines = split(csv, '\n');
  EXPECT_EQ(lines[0],
            "series,optimiser step,control cost (nats),standard error of control cost (nats)");
  EXPECT_EQ(lines[1], "first,0,0.1,0.01");
  EXPECT_EQ(lines[6], "\"second, with a comma\",1,nan,");
  EXPECT_EQ(lines[8], "\"second, with a comma\",3,-1,");
  Chart exact{"", {"x"}, {"y"}, {{"", {1}, {0.1 + 0.2}}}};
  EXPECT_EQ(std::stod(split(split(chart_csv(exact), '\n')[1], ',')[2]), 0.1 + 0.2)
      << "reads back as the same number";
  Chart steps{"", {"ink"}, {"density"}, {{"a", {0, 0.5, 1}, {2, 3}}}};
  steps.series[0].steps = true;
  EXPECT_EQ(chart_csv(steps), "series,ink from,ink to,density\na,0,0.5,2\na,0.5,1,3\n");
}

TEST(report_chart, LongSeriesKeepTheirPeaksAndSaySo) {
  Chart chart{"long", {"x"}, {"y"}, {{"a"}}};
  for (int i = 0; i < 20000; ++i) {
    chart.series[0].x.push_back(i);
    chart.series[0].y.push_back(i == 7777 ? 1e6 : std::sin(i));
  }
  const Chart thin = thinned(chart);
  EXPECT_LE(thin.series[0].y.size(), 1002u);
  EXPECT_EQ(*std::max_element(thin.series[0].y.begin(), thin.series[0].y.end()), 1e6);
  EXPECT_EQ(thin.series[0].x.back(), 19999);
  EXPECT_TRUE(std::is_sorted(thin.series[0].x.begin(), thin.series[0].x.end()));
  EXPECT_TRUE(has(thin.note, "20000 points"));
  EXPECT_EQ(thinned(two_curves()).note, "");
}

}  // namespace tiltflow
