// The tilted-law check: does the tuned model sample p* ~ p_base exp(r)? Statistics of p* are
// predicted by importance- weighting samples of the base model, and compared with the tuned model's
// own, under the memoryless SDE and an ODE. Both models start from the same noise, so that chance
// cancels from the comparison where it has moved both alike.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tiltflow/models/classifier/classifier.h"
#include "tiltflow/reward/state_reward.h"
#include "tiltflow/sampler/condition_groups.h"
#include "tiltflow/sampler/sample.h"
#include "tiltflow/tensor/statistics.h"

namespace tiltflow {

struct ComparedStatistic {
  std::string name;
  Estimate base, predicted, tuned,
      difference;        // difference: tuned - predicted, from samples of the same noise
  double tolerance = 0;  // largest accepted |difference|
  bool agrees = false;
};

struct SamplerCheck {
  std::string sampler;
  double ess = 0;  // of the importance weights
  std::int64_t base_samples = 0;
  std::int64_t tuned_samples = 0;
  Estimate log_z;
  Estimate control_cost;   // SDE only, as what follows
  Estimate gap, path_gap;  // log Z - (E r - cost), log Z from base samples or from the tuned paths
                           // (see PathGap)
  double path_ess = 0;     // share of the tuned paths
  std::vector<ComparedStatistic> statistics;
  Estimate shift_reached;  // of the mean reward: (tuned - base) / (p* - base)
  std::vector<double> edges, base_density, predicted_density,
      tuned_density;  // of the first statistic's variable
  std::string histogram_of;
};

struct TiltedCheck {
  std::string law;  // which one was checked: "p*(x | c) of 48 conditions, 32 samples of each"
  std::vector<SamplerCheck> samplers;
  bool passed = false;
};

struct TiltedCheckOptions {
  std::int64_t base_samples = 1536;
  std::int64_t tuned_samples = 1536;
  double standard_errors = 3;
  double allowance = 0.1;
  std::int64_t per_condition = 24;  // see sampler/condition_groups
  std::int64_t conditions = 64;
  std::shared_ptr<const Classifier> judge;  // may be null
  std::vector<SamplerConfig> samplers;      // compared one after the other
};

// `base` and `tuned` on the same path. With labels the law is p*(x | c) p(c): conditions keep their
// shares, every one has its own normaliser, and both models are drawn on the same conditions, with
// per_condition samples of each (in_groups). Throws kConfig when there are too few samples for one
// condition. Cost: (base + tuned) samples x steps, and as much again of the base for the control
// cost. Same noise keys as nothing else in a run.
TiltedCheck check_tilted_law(const VelocityField& base, const VelocityField& tuned,
                             const Path& path, const StateReward& reward, at::IntArrayRef shape,
                             const RandomStreams& streams, const LabelSource& labels,
                             const TiltedCheckOptions& options);

nlohmann::ordered_json to_json(const TiltedCheck& check);
std::string table_text(const TiltedCheck& check);  // for people

}  // namespace tiltflow
