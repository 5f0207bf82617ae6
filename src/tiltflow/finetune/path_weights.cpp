#include "tiltflow/finetune/path_weights.h"

#include <cmath>

#include "tiltflow/tensor/aten.h"

namespace tiltflow {

PathWeights path_weights(const at::Tensor& log_weights, double budget) {
  const at::Tensor logs = log_weights.detach().to(at::kDouble);
  const auto n = static_cast<double>(logs.size(0));
  const auto tempered = [&](double tau) { return at::softmax(logs * tau, 0); };
  const auto divergence = [&](const at::Tensor& w) {
    return (w * (w.clamp_min(1e-300) * n).log()).sum().item<double>();
  };
  PathWeights out{tempered(1), 1};
  if (budget <= 0 || divergence(out.weights) <= budget) return out;
  double low = 0;
  double high = 1;  // the divergence grows with tau
  for (int i = 0; i < 50; ++i) {
    const double middle = 0.5 * (low + high);
    (divergence(tempered(middle)) > budget ? high : low) = middle;
  }
  return {tempered(low), low};
}

void add_weight_metrics(LossReport& report, const PathWeights& w) {
  const auto n = static_cast<double>(w.weights.size(0));
  report.metrics.add("path_ess", 1 / w.weights.square().sum().item<double>(), n);
  report.metrics.add("tempered", w.tau < 1 ? n : 0, n);
}

}  // namespace tiltflow
