// Rewards with a formula: ink, brightness, linear, quadratic, step, log-density.
#pragma once

#include "tiltflow/reward/reward.h"

namespace tiltflow {

std::shared_ptr<const Reward> make_ink(const RewardTerm& term);
std::shared_ptr<const Reward> make_brightness(const RewardTerm& term);
std::shared_ptr<const Reward> make_linear_reward(
    const RewardTerm& term);  // throws kConfig without slope
std::shared_ptr<const Reward> make_quadratic_reward(
    const RewardTerm& term);  // throws kConfig without center
std::shared_ptr<const Reward> make_step_reward(
    const RewardTerm& term);  // no gradient; throws kConfig without slope
std::shared_ptr<const Reward> make_log_density(
    const RewardTerm& term);  // throws kConfig without means

}  // namespace tiltflow
