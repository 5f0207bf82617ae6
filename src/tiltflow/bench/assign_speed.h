// How fast noise is assigned: targets per second, beside the procedure of
// Orthogonal-Constrained-One-Step-Alignment (one target at a time, a whole rotation by the matrix
// exponential) on the same generator and targets.
#pragma once

#include <nlohmann/json.hpp>

#include "tiltflow/noise/assign.h"

namespace tiltflow {

struct AssignBenchOptions {
  AssignConfig assign;
  std::int64_t targets = 256;          // of the given ones
  std::int64_t reference_targets = 4;  // of the slow procedure; 0 = leave it out
  std::int64_t reference_steps = 200;  // its settings: Adam, 0.05, one start
};
// targets_per_second, loss with standard error, network rows; the same of the reference procedure,
// and the ratio. `targets.ids` key the noise.
nlohmann::ordered_json bench_assign(const Generator& generator, const AssignTargets& targets,
                                    const AssignBenchOptions& options,
                                    const FeatureFunction& features = {});

// A conditional GAN of the published MNIST size with random weights, and targets it made itself: a
// bench without files.
std::unique_ptr<Generator> bench_generator(MatmulPrecision precision);
AssignTargets bench_targets(const Generator& generator, std::int64_t n);

}  // namespace tiltflow
