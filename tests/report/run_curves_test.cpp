#include <algorithm>
#include <nlohmann/json.hpp>

#include "tests/report/hand_made_run.h"
#include "tiltflow/report/run_curves.h"

namespace tiltflow {
namespace {

using test::kMetrics;

std::string first_chart_titles(const std::vector<Chart>& charts) {
  std::vector<std::string> out;
  for (const Chart& chart : charts) {
    if (has_points(chart)) out.push_back(chart.title);
  }
  return join(out, "|");
}

}  // namespace

TEST(report_run_curves, CurvesCarryErrorsUnitsAndCompanions) {
  std::vector<nlohmann::ordered_json> lines;
  for (const std::string& line : split(kMetrics, '\n')) {
    if (!line.empty()) lines.push_back(nlohmann::ordered_json::parse(line));
  }
  const RunCurves curves = curves_of(lines);
  EXPECT_EQ(first_chart_titles(curves.main),
            "Reward|Reward before its scale: ink|Control cost: KL of the tuned paths against the "
            "base's|Gap: log Z − (E r − cost), zero only at the optimum|"
            "Reward against control cost|Loss|Loss by time");
  const Chart& reward = curves.main[0];
  EXPECT_EQ(axis_text(reward.y), "mean reward, scaled (nats)");
  EXPECT_EQ(reward.series[1].error, (std::vector<double>{0.1, 0.1}));
  EXPECT_EQ(reward.series[3].y, (std::vector<double>{2.25, 2.25}))
      << "the base's reward over the whole run";
  EXPECT_EQ(reward.series[3].x, (std::vector<double>{0, 2}));
  const auto against_time =
      std::find_if(curves.cost.begin(), curves.cost.end(),
                   [](const Chart& c) { return c.title == "Reward against time"; });
  ASSERT_NE(against_time, curves.cost.end());
  EXPECT_NEAR(against_time->series[0].x.back(), 4.0 / 60, 1e-12)
      << "seconds of all steps until then, in minutes";
  EXPECT_EQ(first_chart_titles(curves.other), "odd number");
}

}  // namespace tiltflow
