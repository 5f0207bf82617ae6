#include "tiltflow/train/memory_plan.h"

#include <algorithm>

#include "tiltflow/base/error.h"
#include "tiltflow/base/machine.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/models/sit/config.h"
#include "tiltflow/models/sit/sit.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

constexpr double kOverhead = 3e8;  // program, libtorch, buffers of products

}  // namespace

MemoryNeed memory_need(const VelocityModel& model, double trainable_bytes, std::int64_t steps) {
  MemoryNeed need;
  need.weights = model.parameters().bytes();
  need.trained = trainable_bytes * 5;  // the copy itself, its gradient, two moments, the average
  double numel = 1;
  for (const std::int64_t size : model.sample_shape()) numel *= static_cast<double>(size);
  need.trajectory = 4 * numel * 6 * static_cast<double>(steps + 1);
  if (model.spec().family == "sit") {
    if (need.weights <= kLargestPacked) need.packed = 3 * need.weights;
    const SitConfig c = sit_config_from_args(model.spec().args);
    const double side = static_cast<double>(c.input_size / c.patch_size);
    const double tokens = side * side;
    const double width = static_cast<double>(c.hidden_size);
    // Kept for the backward pass, in widths per token: two normalisations and modulations (4), q,
    // k, v (3), attention and its projection (2), gates (2), the hidden layer before and after its
    // activation (2 ratio), and the residual stream (1).
    const double per_block = (12 + 2 * c.mlp_ratio) * width * tokens * 4;
    const double depth = static_cast<double>(c.depth);
    need.activations = per_block * depth;
    need.checkpointed = width * tokens * 4 * depth + per_block;
  }
  return need;
}

MemoryPlan plan_memory(const MemoryNeed& need, std::int64_t batch, std::int64_t graphs, int workers,
                       double limit) {
  MemoryPlan plan;
  plan.limit = limit > 0 ? limit : 0.8 * usable_memory(read_machine("/")).bytes;
  const double fixed_part = kOverhead + 2 * need.weights + need.packed + need.trained +
                            need.trajectory * static_cast<double>(batch);
  const auto per_sample = [&](bool checkpointing) {
    return std::max(1.0, (checkpointing ? need.checkpointed : need.activations) *
                             static_cast<double>(std::max<std::int64_t>(1, graphs)) * workers);
  };
  const auto largest = [&](bool checkpointing) {
    return std::min<std::int64_t>(
        batch, static_cast<std::int64_t>(
                   std::max(0.0, (plan.limit - fixed_part) / per_sample(checkpointing))));
  };
  plan.micro_batch = largest(false);
  if (plan.micro_batch < std::min<std::int64_t>(4, batch) && need.checkpointed > 0) {
    plan.checkpointing = true;
    plan.micro_batch = largest(true);
  }
  if (plan.micro_batch < 1) {
    fail(ErrorKind::kConfig,
         cat("one trajectory needs about ",
             format_bytes(fixed_part + per_sample(need.checkpointed > 0)), ", the limit is ",
             format_bytes(plan.limit)),
         "use policy.kind = \"lora\", fewer loss steps, one worker, or raise compute.memory_gb");
  }
  // Pieces of one size, and at least one for every worker.
  plan.micro_batch = std::min(plan.micro_batch, (batch + workers - 1) / workers);
  const std::int64_t pieces = (batch + plan.micro_batch - 1) / plan.micro_batch;
  plan.micro_batch = (batch + pieces - 1) / pieces;
  plan.bytes = fixed_part + per_sample(plan.checkpointing) * static_cast<double>(plan.micro_batch);
  return plan;
}

std::string MemoryPlan::text() const {
  return cat("pieces of ", micro_batch, micro_batch == 1 ? " trajectory" : " trajectories",
             checkpointing ? ", activations recomputed" : ", activations kept", "; about ",
             format_bytes(bytes), " of ", format_bytes(limit));
}

}  // namespace tiltflow
