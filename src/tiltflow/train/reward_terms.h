// The reward's terms before their scales, logged beside the scaled reward: `reward_unscaled`, or
// `reward_unscaled_NAME` for each of several terms (`_2` and so on behind the second of one name).
#pragma once

#include <map>
#include <string>
#include <vector>

#include "tiltflow/reward/state_reward.h"
#include "tiltflow/tensor/loss_report.h"

namespace tiltflow {

// Behind a metric's name, one a term: {""}, or {"_ink", "_class-log-prob"}.
std::vector<std::string> term_suffixes(const std::vector<RewardTerm>& terms);

// Collects what one piece of work scores, and which of it the batch was given.
class TermMeter {
 public:
  explicit TermMeter(const StateReward& reward);
  TermMeter(const TermMeter&) = delete;
  TermMeter& operator=(const TermMeter&) = delete;
  const StateReward& reward() const { return reward_; }  // whose scorings are collected
  // Adds the terms of the scoring that made `rewards`, or the mean of all scorings of n samples
  // when none did (rewards that are means themselves). Nothing when nothing was scored.
  void add_to(MetricSums& metrics, const std::vector<std::string>& suffixes,
              const at::Tensor& rewards, std::int64_t n) const;

 private:
  std::vector<TermScores> seen_;
  StateReward reward_;
};

// " (unscaled: ink 0.213, class-log-prob -1.2)" of the metrics PREFIXreward_unscaled*; "" when
// there are none.
std::string unscaled_text(const std::map<std::string, double>& metrics,
                          const std::vector<std::string>& suffixes, const std::string& prefix = "");

}  // namespace tiltflow
