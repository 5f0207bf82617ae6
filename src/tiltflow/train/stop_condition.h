// train.stop_when: conditions on what a run logs that end it early, with its checkpoints and an
// exit code of their own.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "tiltflow/base/error.h"
#include "tiltflow/train/diagnosis.h"

namespace tiltflow {

// "METRIC > NUMBER", also >=, <, <=, with " for N" when it must hold N times in a row that the
// metric is logged; or the name of a kind of warning, met when that warning is given.
struct StopCondition {
  std::string text;
  std::string metric;    // empty: a kind of warning
  std::string relation;  // >, >=, <, <=
  double bound = 0;
  std::int64_t times = 1;
};
// Throws kConfig with what is wrong, in words.
StopCondition parse_stop_condition(const std::string& text);
std::vector<StopCondition> parse_stop_conditions(const std::vector<std::string>& texts);

// Whether the condition holds at the last line: what was seen ("control_cost = 1203 > 1000"), or
// nothing. `kinds`: of the warnings given so far.
std::optional<std::string> met(const StopCondition& condition, MetricHistory history,
                               const std::vector<std::string>& kinds);

}  // namespace tiltflow
