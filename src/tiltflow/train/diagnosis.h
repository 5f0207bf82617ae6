// Signs that a run goes wrong, read off what it logs: pure functions from metrics to warnings in
// words. What each kind means and why its thresholds are what they are: docs/warnings.md. Who says
// them, and when: train/watch.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace tiltflow {

struct RunWarning {
  std::string kind;     // one of warning_kinds()
  std::string seen;     // what was measured, with numbers
  std::string meaning;  // what follows for the result
  std::string change;   // which key to change, and how
};
std::string text_of(const RunWarning& warning);
const std::vector<std::string>& warning_kinds();

// One line of metrics.jsonl.
struct LoggedMetrics {
  std::int64_t step = 0;
  std::map<std::string, double> values;
};
using MetricHistory = std::span<const LoggedMetrics>;  // oldest first

// What the signs are measured against.
struct RunFacts {
  // Of fine-tuning runs whose logged rewards and costs are those of the law that base samples stand
  // for; absent otherwise.
  struct Base {
    double reward = 0;
    double reward_se = 0;
  };
  std::optional<Base> base;
  std::int64_t batch = 1;
  std::int64_t micro_batch = 1;
  std::int64_t buffer_passes = 1;  // steps that share a batch, and so its reward and control cost
  double gradient_clip = 0;        // 0: none
  bool loss_falls = true;  // false for adversarial losses and those against the moving policy
};

// Signs in the history up to its last line; at most one of each kind. Cost: linear in its length.
std::vector<RunWarning> diagnose(MetricHistory history, const RunFacts& facts);

// What base samples say before training. rewards [N] scaled, labels [N] or undefined; `scales`: of
// the reward's terms.
std::vector<RunWarning> diagnose_base_rewards(const at::Tensor& rewards, const at::Tensor& labels,
                                              const std::vector<double>& scales);
// The largest factor in (0, 1] on the rewards that leaves the importance weights an effective
// sample size of `share` N.
double factor_for_effective_size(const at::Tensor& rewards, const at::Tensor& labels, double share);
// `share`: of samples whose reward gradient is exactly zero.
std::optional<RunWarning> diagnose_zero_gradients(double share);

// Labels of a data set with `classes` classes.
std::optional<RunWarning> diagnose_class_balance(const std::vector<std::int64_t>& counts,
                                                 const std::vector<std::string>& names);

}  // namespace tiltflow
