// What a report says in words: settings of the run, its result in a sentence, its warnings.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace tiltflow {

// Keys and values of a resolved configuration, e.g. "reward[0].scale" -> "18"; values of several
// lines are left out.
std::map<std::string, std::string> settings_of(const std::string& config_toml);

// A list of what was run, as HTML: those of reward, method, model, sampler, data and length that
// the settings have.
std::string facts_html(const std::map<std::string, std::string>& settings);

// The result in one sentence: whether the check passes and how much of the shift is reached;
// without a check what is known. `check` may be null.
std::string verdict_html(const nlohmann::ordered_json& check,
                         const std::vector<nlohmann::ordered_json>& lines,
                         const std::map<std::string, std::string>& settings);

// Lines of metrics.jsonl that carry a "warning", as a list; "" when there are none.
std::string warnings_html(const std::vector<nlohmann::ordered_json>& lines);

}  // namespace tiltflow
