// What the training loop optimises: anything that turns a step number into independent loss items.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "tiltflow/tensor/loss_report.h"
#include "tiltflow/tensor/parameters.h"

namespace tiltflow {

class Objective {
 public:
  virtual ~Objective() = default;
  virtual const ParameterSet& trainable() const = 0;
  // Prepares step `step` and returns the number of items. All randomness is keyed by `step`.
  virtual std::int64_t begin_step(std::int64_t step) = 0;
  // Item i, with graph; the losses of a step's items add up to the loss of the step. Called from
  // several threads at once; must not change the objective except under its own lock.
  virtual LossReport micro_batch(std::int64_t i) = 0;
  // Which tensors this step changes (asked after begin_step); the others get no gradient and no
  // update.
  virtual bool trains(const std::string& /*name*/) const { return true; }
  virtual void end_step(std::map<std::string, double>& /*metrics*/) {}
  // False while steps share data that a checkpoint does not hold; checkpoints and stops wait until
  // it is true.
  virtual bool at_checkpoint() const { return true; }
  // State beyond the weights that an exact resume needs.
  virtual ParameterSet state() const { return {}; }
  virtual void restore(const ParameterSet& /*state*/) {}
};

}  // namespace tiltflow
