// A policy that starts from what an earlier training made, while the base stays the base.
#pragma once

#include "tiltflow/policy/policy.h"

namespace tiltflow {

// Gives the trainable weights of a fresh policy the values of config.start, so that its tuned field
// equals that of the start:
//   lora     an adapter folder or file of the same rank; layers that it lacks start at zero
//   full     a model file of the base's architecture, or an adapter, which is merged into the base
//   control  a model file of a control run beside the same base
// Throws kConfig for ranks and layers that policy.* leaves out, kBadFile for tensors that do not
// fit.
void start_from(Policy& policy, const FlowModel& flow, const PolicyConfig& config);

}  // namespace tiltflow
