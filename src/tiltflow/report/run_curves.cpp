#include "tiltflow/report/run_curves.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <set>

#include "tiltflow/base/strings.h"
#include "tiltflow/io/json_lines.h"

namespace tiltflow {
namespace {

using Json = nlohmann::ordered_json;
using Lines = std::vector<Json>;

const AxisLabel kSteps{"optimiser step"};

bool is_number(const Json& value) {
  return value.is_number() ||
         (value.is_string() && (value == "nan" || value == "inf" || value == "-inf"));
}

// One metric over steps, with the standard errors that stand beside it as NAME_se.
Series over_steps(const Lines& lines, const std::string& key, const std::string& name) {
  Series out{name};
  const std::string error = key + "_se";
  bool has_error = false;
  for (const Json& line : lines) {
    if (!line.contains(key) || !is_number(line[key])) continue;
    out.x.push_back(line.value("step", 0.0));
    out.y.push_back(number_from_json(line[key]));
    has_error = has_error || line.contains(error);
    out.error.push_back(line.contains(error) ? number_from_json(line[error]) : 0);
  }
  if (!has_error) out.error.clear();
  return out;
}

// A constant over the whole run, e.g. the base's reward.
Series level(const Lines& lines, const std::string& key, const std::string& name) {
  const Series once = over_steps(lines, key, name);
  if (once.y.empty() || lines.empty()) return {name};
  double last = 0;
  for (const Json& line : lines) last = std::max(last, line.value("step", 0.0));
  Series out{name, {0, last}, {once.y.back(), once.y.back()}};
  if (!once.error.empty()) out.error = {once.error.back(), once.error.back()};
  return out;
}

// Metrics "loss_t0.05" and so on, averaged into five bins of time.
std::vector<Series> per_time(const Lines& lines, const std::string& prefix) {
  constexpr std::size_t kBins = 5;
  std::vector<Series> out(kBins);
  for (std::size_t b = 0; b < kBins; ++b) {
    const double low = static_cast<double>(b) / kBins;
    out[b].name = cat("t from ", fixed(low, 1), " to ", fixed(low + 1.0 / kBins, 1));
  }
  for (const Json& line : lines) {
    std::array<double, kBins> sum{};
    std::array<double, kBins> count{};
    for (const auto& [key, value] : line.items()) {
      if (!starts_with(key, prefix) || !is_number(value)) continue;
      const double t = std::atof(key.c_str() + prefix.size());
      const auto bin =
          static_cast<std::size_t>(std::clamp(std::floor(t * kBins + 1e-9), 0.0, kBins - 1.0));
      sum[bin] += number_from_json(value);
      count[bin] += 1;
    }
    for (std::size_t b = 0; b < kBins; ++b) {
      if (count[b] == 0) continue;
      out[b].x.push_back(line.value("step", 0.0));
      out[b].y.push_back(sum[b] / count[b]);
    }
  }
  return out;
}

// Evaluated rewards against what a run has used until then: `key` summed over its steps, or as it
// was logged there.
Series rewards_against(const Lines& lines, const std::string& key, bool summed, double unit) {
  Series out;
  double used = 0;
  for (const Json& line : lines) {
    if (line.contains(key) && is_number(line[key])) {
      used = (summed ? used : 0) + number_from_json(line[key]) / unit;
    }
    if (!line.contains("eval_reward")) continue;
    out.x.push_back(used);
    out.y.push_back(number_from_json(line["eval_reward"]));
    out.error.push_back(line.contains("eval_reward_se") ? number_from_json(line["eval_reward_se"])
                                                        : 0);
  }
  return out;
}

std::string spaced(std::string key) {
  std::replace(key.begin(), key.end(), '_', ' ');
  return key;
}

// Keys of numbers that no named chart shows, in the order of their first appearance.
std::vector<std::string> unnamed_keys(const Lines& lines) {
  static const std::set<std::string> named{"step",
                                           "reward",
                                           "eval_reward",
                                           "eval_ode_reward",
                                           "base_reward",
                                           "control_cost",
                                           "eval_control_cost",
                                           "eval_gap",
                                           "eval_path_gap",
                                           "log_z",
                                           "eval_gain_per_cost",
                                           "loss",
                                           "validation_loss",
                                           "gradient_norm",
                                           "learning_rate",
                                           "seconds",
                                           "evaluations",
                                           "peak_memory_mb",
                                           "peak_device_memory_mb"};
  static const std::vector<std::string> prefixes{"loss_t", "control_norm_t", "target_norm_t",
                                                 "state_norm_t", "adjoint_norm_t"};
  std::vector<std::string> out;
  for (const Json& line : lines) {
    for (const auto& [key, value] : line.items()) {
      if (!is_number(value) || named.count(key) > 0 || ends_with(key, "_se")) continue;
      if (key.find("reward_unscaled") != std::string::npos ||
          std::find(out.begin(), out.end(), key) != out.end()) {
        continue;
      }
      const bool timed =
          std::any_of(prefixes.begin(), prefixes.end(), [k = key](const std::string& p) {
            return starts_with(k, p) && k.size() > p.size() &&
                   std::isdigit(static_cast<unsigned char>(k[p.size()]));
          });
      if (!timed) out.push_back(key);
    }
  }
  return out;
}

// "reward_unscaled_ink" -> "ink": one chart for every term of the reward.
std::vector<std::string> unscaled_terms(const Lines& lines) {
  static const std::string kKey = "reward_unscaled";
  std::vector<std::string> out;
  for (const Json& line : lines) {
    for (const auto& [key, value] : line.items()) {
      const std::size_t at = key.find(kKey);
      if (at == std::string::npos || ends_with(key, "_se")) continue;
      const std::string term = key.substr(at + kKey.size());
      if (std::find(out.begin(), out.end(), term) == out.end()) out.push_back(term);
    }
  }
  return out;
}

Chart single(const Lines& lines, const std::string& key, const std::string& title,
             const std::string& label, const std::string& unit, bool logarithmic) {
  return {title, kSteps, {label, unit, logarithmic}, {over_steps(lines, key, "")}};
}

bool any_has(const Lines& lines, const std::string& key) {
  return std::any_of(lines.begin(), lines.end(),
                     [&](const Json& line) { return line.contains(key); });
}

void add_reward_charts(const Lines& lines, std::vector<Chart>& out) {
  out.push_back({"Reward",
                 kSteps,
                 {"mean reward, scaled", "nats"},
                 {over_steps(lines, "reward", "training batches"),
                  over_steps(lines, "eval_reward", "averaged weights"),
                  over_steps(lines, "eval_ode_reward", "averaged weights, ODE"),
                  level(lines, "base_reward", "base model")}});
  for (const std::string& term : unscaled_terms(lines)) {
    const std::string key = "reward_unscaled" + term;
    const std::string name = term.empty() ? "" : ": " + term.substr(1);
    out.push_back({cat("Reward before its scale", name),
                   kSteps,
                   {"mean reward, unscaled", "its own unit"},
                   {over_steps(lines, key, "training batches"),
                    over_steps(lines, "eval_" + key, "averaged weights"),
                    level(lines, "base_" + key, "base model")}});
  }
}

void add_control_charts(const Lines& lines, std::vector<Chart>& out) {
  out.push_back({"Control cost: KL of the tuned paths against the base's",
                 kSteps,
                 {"control cost", "nats"},
                 {over_steps(lines, "control_cost", "training batches"),
                  over_steps(lines, "eval_control_cost", "averaged weights")}});
  out.push_back({"Gap: log Z − (E r − cost), zero only at the optimum",
                 kSteps,
                 {"gap", "nats"},
                 {over_steps(lines, "eval_gap", "log Z of base samples"),
                  over_steps(lines, "eval_path_gap", "log Z of the tuned paths")}});
  Chart trade{"Reward against control cost",
              {"control cost", "nats"},
              {"mean reward, scaled", "nats"},
              {rewards_against(lines, "eval_control_cost", false, 1)}};
  trade.note = "One mark an evaluation of the averaged weights.";
  if (any_has(lines, "eval_control_cost")) out.push_back(trade);
  out.push_back(single(lines, "eval_gain_per_cost", "Reward gained per nat of control",
                       "gain over cost", "nats per nat", false));
}

void add_loss_charts(const Lines& lines, std::vector<Chart>& out) {
  const bool validated = any_has(lines, "validation_loss");
  out.push_back({"Loss",
                 kSteps,
                 {"loss", "", true},
                 {over_steps(lines, "loss", validated ? "training batches" : ""),
                  over_steps(lines, "validation_loss", "validation")}});
  for (const auto& [prefix, title, label] : {std::tuple{"loss_t", "Loss by time", "loss"},
                                             {"control_norm_t", "Control by time", "norm of u √h"},
                                             {"target_norm_t", "Target by time", "norm of s a"},
                                             {"state_norm_t", "State by time", "norm of x"},
                                             {"adjoint_norm_t", "Adjoint by time", "norm of a"}}) {
    out.push_back({title, kSteps, {label, "", true}, per_time(lines, prefix)});
  }
}

void add_cost_charts(const Lines& lines, std::vector<Chart>& out) {
  out.push_back(single(lines, "gradient_norm", "Gradient norm",
                       "norm of the gradient before clipping", "", true));
  out.push_back(single(lines, "learning_rate", "Learning rate", "learning rate", "", false));
  out.push_back({"Reward against time",
                 {"training time", "minutes"},
                 {"mean reward, scaled", "nats"},
                 {rewards_against(lines, "seconds", true, 60)}});
  out.push_back(single(lines, "seconds", "Time of a step", "time", "seconds", false));
  out.push_back(single(lines, "evaluations", "Network evaluations of a step", "evaluations",
                       "per sample", false));
  out.push_back({"Largest memory so far",
                 kSteps,
                 {"memory", "MB"},
                 {over_steps(lines, "peak_memory_mb", "main memory"),
                  over_steps(lines, "peak_device_memory_mb", "device")}});
}

}  // namespace

RunCurves curves_of(const Lines& lines) {
  RunCurves out;
  add_reward_charts(lines, out.main);
  add_control_charts(lines, out.main);
  add_loss_charts(lines, out.main);
  add_cost_charts(lines, out.cost);
  for (const std::string& key : unnamed_keys(lines)) {
    out.other.push_back(single(lines, key, spaced(key), spaced(key), "", false));
  }
  return out;
}

}  // namespace tiltflow
