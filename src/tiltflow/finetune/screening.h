// Screened rollouts (Sol-RL, arXiv 2604.06916): many seeds are drafted with few deterministic
// steps, the best and the worst of each group are drawn again with all steps, and only these are
// learned from. It works as far as drafts rank seeds as full rollouts do, which is logged
// (draft_correlation).
#pragma once

#include "tiltflow/finetune/method.h"

namespace tiltflow {

struct ScreeningConfig {
  std::int64_t candidates = 0;   // seeds drafted for each group; 0 = no screening
  std::int64_t draft_steps = 6;  // of the steps of the sampler's grid
};
void bind(Fields& f, ScreeningConfig& c);

// End points of `n` samples in groups of `group` that share a label, drawn with the ODE's Euler
// steps on the sampler's grid: of every group's candidates the group/2 best by draft and the rest
// of the worst. Cost per sample: candidates / group * draft_steps + K calls of `field`. `rewards`
// (if given) receives those of the end points, which are scored for the correlation. Throws kConfig
// when there are fewer candidates than samples.
at::Tensor screened_end_points(const FinetuneContext& context, const VelocityField& field,
                               std::uint32_t key, std::int64_t first, std::int64_t n,
                               std::int64_t group, const at::Tensor& labels,
                               const ScreeningConfig& config, MetricSums& metrics,
                               at::Tensor* rewards = nullptr);

}  // namespace tiltflow
