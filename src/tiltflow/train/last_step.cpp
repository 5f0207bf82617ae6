#include "tiltflow/train/last_step.h"

#include "tiltflow/base/error.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/train/own_values.h"

namespace tiltflow {

LastStep::LastStep(const Objective& objective, const AdamW& optimizer, const WeightAverage& average,
                   std::int64_t step, bool followed)
    : objective_(objective),
      optimizer_(optimizer),
      average_(average),
      step_(step),
      followed_(followed),
      state_(clone(objective.state(), false)) {}

Checkpoint LastStep::current() const {
  Checkpoint out{step_,
                 {{"weights", own_values(objective_.trainable())},
                  {"average", average_.values()},
                  {"optimizer", optimizer_.state()}},
                 followed_};
  if (!state_.empty()) out.parts["objective"] = state_;
  return out;
}

void LastStep::advance(bool complete, const std::function<void()>& update) {
  const std::lock_guard lock(mutex_);
  if (!complete && !copy_) {
    copy_ = current();
    for (auto& [name, part] : copy_->parts) part = clone(part, false);
  }
  broken_ = true;
  update();
  broken_ = false;
  ++step_;
  if (!complete) return;
  copy_.reset();
  changed_ = true;
  followed_ = false;
  state_ = clone(objective_.state(), false);
}

void LastStep::followed(bool changed) {
  const std::lock_guard lock(mutex_);
  if (copy_) return;
  changed_ = changed_ || !followed_;
  followed_ = true;
  if (changed) state_ = clone(objective_.state(), false);
}

std::int64_t LastStep::save(Run& run, std::int64_t keep) {
  const std::lock_guard lock(mutex_);
  if (broken_ && !copy_) {
    fail(ErrorKind::kFailure, "the weights are between two steps; the checkpoint before is intact");
  }
  const Checkpoint checkpoint = copy_ ? *copy_ : current();
  if (changed_) run.save(checkpoint, keep);
  changed_ = false;
  return checkpoint.step;
}

}  // namespace tiltflow
