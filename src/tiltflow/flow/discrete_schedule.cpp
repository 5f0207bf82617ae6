#include "tiltflow/flow/discrete_schedule.h"

#include <cmath>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"

namespace tiltflow {

DiscreteSchedule::DiscreteSchedule(const std::string& name) {
  const bool scaled = name == "scaled-linear";
  if (!scaled && name != "linear") {
    fail(ErrorKind::kConfig, cat("noise schedule '", name, "' is unknown"),
         "use linear or scaled-linear");
  }
  const double begin = scaled ? std::sqrt(0.00085) : 1e-4;
  const double end = scaled ? std::sqrt(0.012) : 0.02;
  double product = 1;
  for (int t = 0; t < 1000; ++t) {
    const double b = begin + (end - begin) * t / 999;
    alpha_bar_.push_back(product *= 1 - (scaled ? b * b : b));
  }
}

double DiscreteSchedule::sigma(std::int64_t t) const {
  return std::sqrt((1 - alpha_bar(t)) / alpha_bar(t));
}

const std::vector<std::string>& one_step_kinds() {
  static const std::vector<std::string> kinds{"euler", "ddpm", "tcd"};
  return kinds;
}

OneStep one_step(const DiscreteSchedule& s, const std::string& kind) {
  const std::int64_t t = s.steps() - 1;
  const double sigma = s.sigma(t);
  const double a = s.alpha_bar(t);
  if (kind == "euler") return {t, sigma / std::sqrt(sigma * sigma + 1), sigma, -sigma};
  const OneStep clean{t, 1, 1 / std::sqrt(a), -std::sqrt(1 - a) / std::sqrt(a)};
  if (kind == "ddpm") return clean;
  if (kind != "tcd") {
    fail(ErrorKind::kConfig, cat("one-step scheme '", kind, "' is unknown"),
         "known: " + join(one_step_kinds(), ", "));
  }
  const double first = s.alpha_bar(0);
  return {t, 1, std::sqrt(first) * clean.keep,
          std::sqrt(first) * clean.prediction + std::sqrt(1 - first)};
}

}  // namespace tiltflow
