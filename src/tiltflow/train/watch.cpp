#include "tiltflow/train/watch.h"

#include <algorithm>

#include "tiltflow/base/log.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/json_lines.h"

namespace tiltflow {
namespace {

constexpr std::int64_t kNamesKnown = 10;  // every metric of training has been logged by this step

}  // namespace

std::vector<StoredWarning> stored_warnings(const std::filesystem::path& run) {
  std::vector<StoredWarning> out;
  for (const auto& line : read_json_lines(run / "metrics.jsonl")) {
    if (!line.contains("warning")) continue;
    const auto word = [&](const char* key) { return line.value(key, std::string()); };
    out.push_back({line.value("step", std::int64_t{0}),
                   {word("warning"), word("seen"), word("meaning"), word("change")}});
  }
  return out;
}

void warn(Run& run, std::int64_t step, const RunWarning& w) {
  if (!run.writes()) return;
  log_warn(cat(w.kind, ": ", text_of(w)));
  run.note(step,
           {{"warning", w.kind}, {"seen", w.seen}, {"meaning", w.meaning}, {"change", w.change}});
}

Watch::Watch(std::vector<StopCondition> conditions, RunFacts facts, std::int64_t steps, Run& run)
    : conditions_(std::move(conditions)),
      facts_(facts),
      names_known_(std::min(steps, kNamesKnown)),
      run_(run) {
  kept_ = std::max<std::size_t>(1000, 30 * static_cast<std::size_t>(facts.buffer_passes));
  for (const StopCondition& c : conditions_) {
    kept_ = std::max(kept_, 4 * static_cast<std::size_t>(c.times));
  }
  if (!run.writes()) return;
  for (const auto& line : read_json_lines(run.directory() / "metrics.jsonl")) {
    if (line.contains("warning")) {
      said_.push_back(line["warning"].get<std::string>());
      continue;
    }
    std::map<std::string, double> values;
    for (const auto& [key, value] : line.items()) {
      if (key != "step") values[key] = number_from_json(value);
    }
    remember(line.value("step", std::int64_t{0}), std::move(values));
  }
}

// A condition on a metric that is never logged would never stop anything. Evaluations may come
// later.
void Watch::name_unknown_metrics() const {
  std::vector<std::string> names;
  for (const LoggedMetrics& line : history_) {
    for (const auto& [name, value] : line.values) names.push_back(name);
  }
  for (const StopCondition& c : conditions_) {
    const bool later =
        c.metric.empty() || starts_with(c.metric, "eval_") || starts_with(c.metric, "validation_");
    if (later || std::find(names.begin(), names.end(), c.metric) != names.end()) continue;
    log_warn(cat("train.stop_when: this run logs no '", c.metric, "'",
                 did_you_mean(c.metric, names), "; the condition \"", c.text, "\" stops nothing"));
  }
}

void Watch::remember(std::int64_t step, std::map<std::string, double> metrics) {
  if (history_.size() >= 2 * kept_) {
    history_.erase(history_.begin(), history_.end() - static_cast<std::ptrdiff_t>(kept_));
  }
  history_.push_back({step, std::move(metrics)});
}

void Watch::observe(std::int64_t step, const std::map<std::string, double>& metrics) {
  if (!run_.writes()) return;
  remember(step, metrics);
  for (const RunWarning& warning : diagnose(history_, facts_)) {
    if (std::find(said_.begin(), said_.end(), warning.kind) != said_.end()) continue;
    said_.push_back(warning.kind);
    warn(run_, step, warning);
  }
  if (step == names_known_) name_unknown_metrics();
  for (const StopCondition& condition : conditions_) {
    if (!reason_.empty()) break;
    if (const auto seen = met(condition, history_, said_)) {
      reason_ = cat("\"", condition.text, "\" (", *seen, ")");
    }
  }
}

}  // namespace tiltflow
