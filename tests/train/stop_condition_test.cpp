#include "tiltflow/train/stop_condition.h"
#include "tests/support.h"
#include "tiltflow/train/diagnosis.h"

namespace tiltflow {

TEST(train_stop_condition, Grammar) {
  const StopCondition c = parse_stop_condition("control_cost  >= 1e3 for 5");
  EXPECT_EQ(c.metric, "control_cost");
  EXPECT_EQ(c.relation, ">=");
  EXPECT_EQ(c.bound, 1000);
  EXPECT_EQ(c.times, 5);
  EXPECT_TRUE(parse_stop_condition("control-cost").metric.empty());
  for (const auto& [text, what] : std::vector<std::pair<std::string, std::string>>{
           {"contol-cost", "did you mean 'control-cost'"},
           {"loss > much", "'much' is not a number"},
           {"loss == 3", "compares nothing"},
           {"loss > 3 for", "not understood"},
           {"loss > 3 for 0", "whole number of 1 or more"},
           {"loss > 3 for 1.5", "whole number"},
           {"loss > 3 over 2", "'for'"},
           {"", "not understood"},
           {"loss > nan", "not a number"}}) {
    test::expect_error(ErrorKind::kConfig, what, [&] { parse_stop_condition(text); });
  }
}

TEST(train_stop_condition, HoldsAsOftenAsAsked) {
  std::vector<LoggedMetrics> history{{1, {{"loss", 1.0}}},
                                     {2, {{"loss", 6.0}}},
                                     {2, {{"eval_reward", 1.0}}},
                                     {3, {{"loss", 7.0}}}};
  EXPECT_TRUE(met(parse_stop_condition("loss > 5"), history, {}));
  EXPECT_EQ(*met(parse_stop_condition("loss > 5 for 2"), history, {}),
            "loss = 7 > 5, 2 times in a row");
  EXPECT_FALSE(met(parse_stop_condition("loss > 5 for 3"), history, {}));
  EXPECT_FALSE(met(parse_stop_condition("loss > 0 for 4"), history, {})) << "three values so far";
  EXPECT_FALSE(met(parse_stop_condition("loss < 7"), history, {}));
  EXPECT_TRUE(met(parse_stop_condition("loss <= 7"), history, {}));
  EXPECT_FALSE(met(parse_stop_condition("eval_reward < 5"), history, {})) << "not of the last line";
  EXPECT_TRUE(met(parse_stop_condition("loss"), history, {"loss"}));
  EXPECT_FALSE(met(parse_stop_condition("loss"), history, {"scale"}));
}

}  // namespace tiltflow
