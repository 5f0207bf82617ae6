// A scalar loss with its graph, and the averages that are logged beside it.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <string>

namespace tiltflow {

// Averages that can be added up over pieces of work: value = sum / weight.
class MetricSums {
 public:
  void add(const std::string& name, double sum, double weight = 1);
  void add(const MetricSums& other);
  std::map<std::string, double> averages() const;
  double weight_of(const std::string& name) const;  // 0 when absent
  double take(const std::string& name);             // the sum, removed; 0 when absent
  // As text and back, exact: what processes exchange.
  std::string text() const;
  static MetricSums from_text(const std::string& text);

 private:
  std::map<std::string, std::pair<double, double>> sums_;
};

struct LossReport {
  at::Tensor loss;
  MetricSums metrics;
};

}  // namespace tiltflow
