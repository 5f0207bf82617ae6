// Rewards compared within groups of samples that share a label: what methods without reward
// gradients learn from.
#pragma once

#include "tiltflow/config/fields.h"
#include "tiltflow/sampler/labels.h"

namespace tiltflow {

struct AdvantageConfig {
  std::int64_t group = 8;  // consecutive samples with one label
  std::string kind =
      "group";      // value (reward as it is), centred, group (centred, divided by the group's
                    // deviation), batch (by the deviation of all), rank, pairwise
  double clip = 5;  // largest advantage; 0 = none
};
void bind(Fields& f, AdvantageConfig& c);

// Labels in runs of `group`.
LabelSource grouped(LabelSource labels, std::int64_t group);
// Share of every entry in the best of its row: 1 / (entries that tie for it), else 0. [g, G] -> [g,
// G] double; rows sum to 1, so that a group without a winner weighs as much as any other.
at::Tensor shares_of_best(const at::Tensor& groups);

// [n] -> [n]; n a multiple of the group. Deviations are those of these n samples. rank: places
// within the group, scaled to mean 0 and deviation 1; equal rewards share the mean of their places,
// and a group of equal rewards gets zeros. pairwise: expected wins against the group under
// Bradley-Terry, mean of sigmoid(r_i - r_j), less 1/2, doubled: within (-1, 1), bounded whatever
// the rewards. Throws kConfig.
at::Tensor advantages(const at::Tensor& rewards, const AdvantageConfig& config);

}  // namespace tiltflow
