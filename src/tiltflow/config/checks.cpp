// What values of keys are accepted.
#include <algorithm>
#include <cmath>

#include "tiltflow/base/strings.h"
#include "tiltflow/config/fields.h"

namespace tiltflow {

Check<double> positive() {
  return [](const double& v) {
    return v > 0 && std::isfinite(v) ? "" : "must be positive and finite";
  };
}
Check<double> at_least(double low) {
  return [low](const double& v) {
    return v >= low && std::isfinite(v) ? std::string() : cat("must be finite and at least ", low);
  };
}
Check<double> between(double low, double high) {
  return [=](const double& v) {
    return v >= low && v <= high ? std::string() : cat("must lie in [", low, ", ", high, "]");
  };
}
Check<std::int64_t> at_least_integer(std::int64_t low, std::int64_t high) {
  return [low, high](const std::int64_t& v) -> std::string {
    if (v < low) return cat("must be at least ", low);
    return v <= high ? "" : cat("must be at most ", high);
  };
}

Check<std::int64_t> any_seed() {
  return at_least_integer(0, std::numeric_limits<std::int64_t>::max());
}
Check<std::string> one_of(std::vector<std::string> choices) {
  return [choices](const std::string& v) {
    if (std::find(choices.begin(), choices.end(), v) != choices.end()) return std::string();
    return cat("must be one of ", join(choices, ", "), did_you_mean(v, choices));
  };
}

}  // namespace tiltflow
