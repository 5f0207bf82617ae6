// The curves of a run: every number of metrics.jsonl in a plot, named ones together and with their
// units.
#pragma once

#include <nlohmann/json.hpp>
#include <vector>

#include "tiltflow/report/chart.h"

namespace tiltflow {

struct RunCurves {
  std::vector<Chart> main;   // reward, cost, gap, loss, validation, what else a run is judged by
  std::vector<Chart> cost;   // time, evaluations, memory, learning rate, gradient norm
  std::vector<Chart> other;  // everything else that was logged
};

// From the lines of metrics.jsonl, whatever they hold; charts without points may be among them.
RunCurves curves_of(const std::vector<nlohmann::ordered_json>& lines);

}  // namespace tiltflow
