// Reads along while a run logs: says each kind of warning once, in the log and in metrics.jsonl,
// and knows when train.stop_when is met.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "tiltflow/train/diagnosis.h"
#include "tiltflow/train/run.h"
#include "tiltflow/train/stop_condition.h"

namespace tiltflow {

// A warning as it stands in metrics.jsonl: {"step": 12, "warning": KIND, "seen": ..., "meaning":
// ..., "change": ...}.
struct StoredWarning {
  std::int64_t step = 0;
  RunWarning warning;
};
std::vector<StoredWarning> stored_warnings(const std::filesystem::path& run);
// Says a warning and stores it with the run.
void warn(Run& run, std::int64_t step, const RunWarning& warning);

class Watch {
 public:
  // Takes up what the run has logged already, when it is resumed. `steps`: length of the run.
  Watch(std::vector<StopCondition> conditions, RunFacts facts, std::int64_t steps, Run& run);
  // After run.log of the same metrics.
  void observe(std::int64_t step, const std::map<std::string, double>& metrics);
  // What train.stop_when has met, in words; stays once met. Empty: nothing.
  const std::string& stop_reason() const { return reason_; }

 private:
  void name_unknown_metrics() const;
  void remember(std::int64_t step, std::map<std::string, double> metrics);
  std::vector<StopCondition> conditions_;
  RunFacts facts_;
  std::int64_t names_known_;  // step at which every metric of training has been logged
  Run& run_;
  std::vector<LoggedMetrics> history_;
  std::vector<std::string> said_;  // kinds
  std::size_t kept_;               // lines of history
  std::string reason_;
};

}  // namespace tiltflow
