// What the training loop optimises: anything that turns a step number into independent loss items.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <string>

#include "tiltflow/tensor/parameters.h"

namespace tiltflow {

// Averages that can be added up over items: value = sum / weight.
class MetricSums {
 public:
  void add(const std::string& name, double sum, double weight = 1);
  void add(const MetricSums& other);
  std::map<std::string, double> averages() const;

 private:
  std::map<std::string, std::pair<double, double>> sums_;
};

struct LossReport {
  at::Tensor loss;  // scalar with graph; the losses of a step's items add up to the loss of the step
  MetricSums metrics;
};

class Objective {
 public:
  virtual ~Objective() = default;
  virtual const ParameterSet& trainable() const = 0;
  // Prepares step `step` and returns the number of items. All randomness is keyed by `step`.
  virtual std::int64_t begin_step(std::int64_t step) = 0;
  // Item i, with graph. Called from several threads at once; must not change the objective except under its own lock.
  virtual LossReport item(std::int64_t i) = 0;
  virtual void end_step(std::map<std::string, double>& /*metrics*/) {}
  // State beyond the weights that an exact resume needs.
  virtual ParameterSet state() const { return {}; }
  virtual void restore(const ParameterSet& /*state*/) {}
};

}  // namespace tiltflow
