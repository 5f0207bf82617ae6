// What a sweep leaves behind: sweep.json and sweep.md with one row a run, sweep.html with the table
// and trade-offs.
#pragma once

#include <vector>

#include "tiltflow/eval/sweep.h"

namespace tiltflow {

// Figures come from the runs' check.json where there is one, else from their last evaluation.
void write_sweep_page(const SweepOptions& options, const std::vector<SweptRun>& runs);

}  // namespace tiltflow
