#include "tiltflow/tensor/loss_report.h"

namespace tiltflow {

void MetricSums::add(const std::string& name, double sum, double weight) {
  auto& entry = sums_[name];
  entry.first += sum;
  entry.second += weight;
}

void MetricSums::add(const MetricSums& other) {
  for (const auto& [name, entry] : other.sums_) add(name, entry.first, entry.second);
}

std::map<std::string, double> MetricSums::averages() const {
  std::map<std::string, double> out;
  for (const auto& [name, entry] : sums_) out[name] = entry.second != 0 ? entry.first / entry.second : 0;
  return out;
}

double MetricSums::weight_of(const std::string& name) const {
  const auto found = sums_.find(name);
  return found == sums_.end() ? 0 : found->second.second;
}

}  // namespace tiltflow
