// Rewards compared within groups of samples that share a label: what methods without reward gradients learn from.
#pragma once

#include "tiltflow/config/fields.h"
#include "tiltflow/sampler/labels.h"

namespace tiltflow {

struct AdvantageConfig {
  std::int64_t group = 8;             // consecutive samples with one label
  std::string kind = "group";         // value (reward as it is), centred, group (centred, divided by the group's deviation), batch (by the deviation of all), rank, pairwise
  double clip = 5;                    // largest advantage; 0 = none
};
void bind(Fields& f, AdvantageConfig& c);

// Labels in runs of `group`.
LabelSource grouped(LabelSource labels, std::int64_t group);
// [n] -> [n]; n a multiple of the group. Deviations are those of these n samples. rank: places within the group, scaled to mean 0 and deviation 1. pairwise: expected
// wins against the group under Bradley-Terry, mean of sigmoid(r_i - r_j), less 1/2, doubled: within (-1, 1), bounded whatever the rewards. Throws kConfig.
at::Tensor advantages(const at::Tensor& rewards, const AdvantageConfig& config);

}  // namespace tiltflow
