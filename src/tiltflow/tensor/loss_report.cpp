#include "tiltflow/tensor/loss_report.h"

#include <cstdio>
#include <cstdlib>

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
  for (const auto& [name, entry] : sums_) {
    out[name] = entry.second != 0 ? entry.first / entry.second : 0;
  }
  return out;
}

double MetricSums::weight_of(const std::string& name) const {
  const auto found = sums_.find(name);
  return found == sums_.end() ? 0 : found->second.second;
}

std::string MetricSums::text() const {
  std::string out;
  char line[64];
  for (const auto& [name, pair] : sums_) {
    std::snprintf(line, sizeof line, "%a %a ", pair.first, pair.second);
    out += line + name + "\n";
  }
  return out;
}

MetricSums MetricSums::from_text(const std::string& text) {
  MetricSums out;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = text.find('\n', begin);
    char* rest = nullptr;
    const double sum = std::strtod(text.c_str() + begin, &rest);
    const double weight = std::strtod(rest, &rest);
    const auto name = static_cast<std::size_t>(rest - text.c_str()) + 1;
    out.add(text.substr(name, end - name), sum, weight);
    begin = end + 1;
  }
  return out;
}

double MetricSums::take(const std::string& name) {
  const auto found = sums_.find(name);
  if (found == sums_.end()) return 0;
  const double sum = found->second.first;
  sums_.erase(found);
  return sum;
}

}  // namespace tiltflow
