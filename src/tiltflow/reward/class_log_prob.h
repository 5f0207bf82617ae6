// log p_judge(class | image): its tilt at scale 1 is Bayes' posterior of the base given the class.
#pragma once

#include "tiltflow/reward/reward.h"

namespace tiltflow {

std::shared_ptr<const Reward> make_class_log_prob(const RewardTerm& term);

}  // namespace tiltflow
