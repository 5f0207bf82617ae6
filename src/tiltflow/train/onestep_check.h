// A configuration of one-step generators tried before any of its verbs starts.
#pragma once

#include <string>
#include <vector>

#include "tiltflow/train/onestep.h"

namespace tiltflow {

// Opens what is named (generator, anchor, targets, pairs, features), makes two samples with
// gradients, scores them with the rewards and reads the first target. Throws what it finds
// together. Returns lines that say what is there.
std::vector<std::string> check_start(const OneStepConfig& config);

}  // namespace tiltflow
