#include "tiltflow/train/stop_condition.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"

namespace tiltflow {
namespace {

std::vector<std::string> words_of(const std::string& text) {
  std::vector<std::string> out;
  for (const std::string& word : split(text, ' ')) {
    if (!word.empty()) out.push_back(word);
  }
  return out;
}

[[noreturn]] void fail_condition(const std::string& text, const std::string& what) {
  fail(ErrorKind::kConfig, cat("the condition '", text, "': ", what),
       cat("write \"METRIC > NUMBER\" (also >=, <, <=; \"for N\" behind it: N times in a row), or "
           "a kind of warning: ",
           join(warning_kinds(), ", ")));
}

double number_of(const std::string& text, const std::string& word) {
  char* end = nullptr;
  const double value = std::strtod(word.c_str(), &end);
  if (word.empty() || *end || !std::isfinite(value)) {
    fail_condition(text, cat("'", word, "' is not a number"));
  }
  return value;
}

bool holds(const StopCondition& c, double value) {
  if (c.relation == ">") return value > c.bound;
  if (c.relation == ">=") return value >= c.bound;
  if (c.relation == "<") return value < c.bound;
  return value <= c.bound;
}

}  // namespace

StopCondition parse_stop_condition(const std::string& text) {
  const std::vector<std::string> words = words_of(text);
  StopCondition out;
  out.text = join(words, " ");
  if (words.size() == 1) {
    const auto& kinds = warning_kinds();
    if (std::find(kinds.begin(), kinds.end(), words[0]) == kinds.end()) {
      fail_condition(
          text, cat("neither a comparison nor a kind of warning", did_you_mean(words[0], kinds)));
    }
    return out;
  }
  const std::vector<std::string> relations{">", ">=", "<", "<="};
  if (words.size() != 3 && words.size() != 5) fail_condition(text, "not understood");
  out.metric = words[0];
  out.relation = words[1];
  if (std::find(relations.begin(), relations.end(), out.relation) == relations.end()) {
    fail_condition(text, cat("'", out.relation, "' compares nothing"));
  }
  out.bound = number_of(text, words[2]);
  if (words.size() == 3) return out;
  const double times = number_of(text, words[4]);
  if (words[3] != "for" || times < 1 || times > 1e6 || times != std::floor(times)) {
    fail_condition(text,
                   "after the number comes nothing, or 'for' and a whole number of 1 or more");
  }
  out.times = static_cast<std::int64_t>(times);
  return out;
}

std::vector<StopCondition> parse_stop_conditions(const std::vector<std::string>& texts) {
  std::vector<StopCondition> out;
  for (const std::string& text : texts) out.push_back(parse_stop_condition(text));
  return out;
}

std::optional<std::string> met(const StopCondition& c, MetricHistory history,
                               const std::vector<std::string>& kinds) {
  if (c.metric.empty()) {
    if (std::find(kinds.begin(), kinds.end(), c.text) == kinds.end()) return std::nullopt;
    return cat("warning ", c.text);
  }
  if (history.empty() || !history.back().values.count(c.metric)) return std::nullopt;
  std::int64_t held = 0;
  for (auto line = history.rbegin(); line != history.rend() && held < c.times; ++line) {
    const auto found = line->values.find(c.metric);
    if (found == line->values.end()) continue;
    if (!holds(c, found->second)) return std::nullopt;
    ++held;
  }
  if (held < c.times) return std::nullopt;
  std::string seen = cat(c.metric, " = ", compact(history.back().values.at(c.metric), 4), " ",
                         c.relation, " ", compact(c.bound));
  if (c.times > 1) seen += cat(", ", c.times, " times in a row");
  return seen;
}

}  // namespace tiltflow
