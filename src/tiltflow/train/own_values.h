// Weights while SwappedWeights (train/optimizer) holds others in their place: for a thread that
// saves while another evaluates.
#pragma once

#include "tiltflow/tensor/parameters.h"

namespace tiltflow {

// A copy of the values that belong to `target`, when others are swapped in; `target` itself
// otherwise.
ParameterSet own_values(const ParameterSet& target);

}  // namespace tiltflow
