// How a fine-tuning step fits into memory: how many trajectories travel together, and whether
// activations are recomputed.
#pragma once

#include <cstdint>
#include <string>

#include "tiltflow/models/velocity_model.h"

namespace tiltflow {

struct MemoryNeed {
  double weights = 0;  // bytes of the base model
  double packed = 0;  // weights in the layout of products: of the base both ways, of the policy one
  double trained = 0;     // trained copies, gradients, AdamW's two moments, average
  double trajectory = 0;  // per sample: states, velocities, noises, adjoints
  double activations = 0;
  double checkpointed = 0;  // per sample and evaluation with a graph, plain and
                            // recomputed; 0 = unknown network
};
// `trainable_bytes`: of the policy (LoRA and control networks share the base's weights).
MemoryNeed memory_need(const VelocityModel& model, double trainable_bytes, std::int64_t steps);

struct MemoryPlan {
  std::int64_t micro_batch = 1;  // trajectories per piece of work
  bool checkpointing = false;
  double bytes = 0;
  double limit = 0;  // estimated peak, and what it had to fit into
  std::string text() const;
};
// The largest pieces that fit `limit` bytes with `workers` of them at a time, `graphs` evaluations
// with a graph per sample in one call; plain activations if that gives pieces of at least 4 (or the
// whole batch), else recomputed ones. `limit` 0: 80 % of the memory that is free now. Throws
// kConfig when a single trajectory does not fit.
MemoryPlan plan_memory(const MemoryNeed& need, std::int64_t batch, std::int64_t graphs, int workers,
                       double limit);

}  // namespace tiltflow
