// What a training run can be continued from at any moment, also while the next step is being
// computed or evaluated. A stop may come from another thread (base/signals), so changes are made
// under a lock.
#pragma once

#include <functional>
#include <mutex>
#include <optional>

#include "tiltflow/train/objective.h"
#include "tiltflow/train/optimizer.h"
#include "tiltflow/train/run.h"

namespace tiltflow {

// The weights change only inside advance, so they are referred to; the objective's state is copied,
// because a step changes it while it runs. While the objective is between two states that a
// checkpoint can hold (Objective::at_checkpoint), everything is a copy.
class LastStep {
 public:
  LastStep(const Objective& objective, const AdamW& optimizer, const WeightAverage& average,
           std::int64_t step, bool followed);

  // `update` finishes a step: weights, average, log. `complete`: a checkpoint can hold what it
  // leaves.
  void advance(bool complete, const std::function<void()>& update);
  // What follows a step (evaluation, validation) has been done; `changed`: it has changed the
  // objective's state.
  void followed(bool changed);

  std::int64_t step() const { return step_; }
  // Saves the newest complete state, unless nothing has changed since the start or the last save;
  // answers its step. Locks, so it may be called while another thread computes.
  std::int64_t save(Run& run, std::int64_t keep);

 private:
  Checkpoint current() const;

  const Objective& objective_;
  const AdamW& optimizer_;
  const WeightAverage& average_;
  std::mutex mutex_;
  std::int64_t step_;
  bool followed_;
  bool changed_ = false;            // since the last save
  bool broken_ = false;             // an update failed half-way
  ParameterSet state_;              // of the objective
  std::optional<Checkpoint> copy_;  // of the last complete step, while a later one is incomplete
};

}  // namespace tiltflow
