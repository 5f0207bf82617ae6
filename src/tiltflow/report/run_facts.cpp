#include "tiltflow/report/run_facts.h"

#include <cmath>

#include "tiltflow/base/strings.h"
#include "tiltflow/io/json_lines.h"
#include "tiltflow/report/svg_text.h"
#include "tiltflow/report/table.h"

namespace tiltflow {
namespace {

using Json = nlohmann::ordered_json;
using Settings = std::map<std::string, std::string>;

std::string trimmed(const std::string& text) {
  const std::size_t begin = text.find_first_not_of(" \t\r");
  if (begin == std::string::npos) return "";
  return text.substr(begin, text.find_last_not_of(" \t\r") - begin + 1);
}

std::string unquoted(const std::string& text) {
  const bool quoted =
      text.size() >= 2 && (text[0] == '\'' || text[0] == '"') && text.back() == text[0];
  return quoted ? text.substr(1, text.size() - 2) : text;
}

// A number as people write it; other texts as they are.
std::string plain(const std::string& text) {
  char* end = nullptr;
  const double v = std::strtod(text.c_str(), &end);
  return text.empty() || *end != '\0' ? text : compact(v, 9);
}

std::string find(const Settings& settings, const std::string& key) {
  const auto at = settings.find(key);
  return at == settings.end() ? "" : plain(at->second);
}

// "ink × 18, class-log-prob × 2".
std::string rewards_of(const Settings& settings) {
  std::vector<std::string> terms;
  for (int i = 0;; ++i) {
    const std::string name = find(settings, cat("reward[", i, "].name"));
    if (name.empty()) break;
    const std::string scale = find(settings, cat("reward[", i, "].scale"));
    terms.push_back(scale.empty() ? name : cat(name, ", scale ", scale));
  }
  return join(terms, "; ");
}

// The values of some keys in a row: "exponential, 20 steps".
std::string together(const Settings& settings,
                     const std::vector<std::pair<std::string, std::string>>& keys) {
  std::vector<std::string> parts;
  for (const auto& [key, after] : keys) {
    if (const std::string v = find(settings, key); !v.empty()) parts.push_back(v + after);
  }
  return join(parts, ", ");
}

double last_number(const std::vector<Json>& lines, const std::string& key) {
  for (auto line = lines.rbegin(); line != lines.rend(); ++line) {
    if (line->contains(key)) return number_from_json((*line)[key]);
  }
  return std::nan("");
}

std::string share_of_shift(const Json& sampler) {
  const Json& e = sampler.at("shift_reached");
  const double value = 100 * number_from_json(e.at("value"));
  return cat(fixed(value, 0), "\u00a0±\u00a0", fixed(100 * number_from_json(e.at("se")), 0),
             "\u00a0% (sampler ", sampler.at("sampler").get<std::string>(), ")");
}

std::string verdict(const std::string& kind, const std::string& text) {
  return cat("<p class=\"verdict ", kind, "\">", xml_text(text), "</p>");
}

std::string verdict_of_check(const Json& check) {
  std::vector<std::string> shares;
  int differing = 0;
  int all = 0;
  for (const Json& sampler : check.at("samplers")) {
    shares.push_back(share_of_shift(sampler));
    for (const Json& s : sampler.at("statistics")) {
      differing += s.at("agrees").get<bool>() ? 0 : 1;
      ++all;
    }
  }
  const bool passed = check.at("passed").get<bool>();
  const std::string result =
      passed ? cat("Passes the tilted-law check: all ", all, " statistics agree with p*")
             : cat("Fails the tilted-law check: ", differing, " of ", all,
                   " statistics differ from p*");
  return verdict(
      passed ? "ok" : "bad",
      cat(result, ". Of the shift of the mean reward from base to p* the tuned model reaches ",
          join(shares, " and "), "."));
}

}  // namespace

Settings settings_of(const std::string& config_toml) {
  Settings out;
  std::map<std::string, int> counts;
  std::string section;
  for (const std::string& raw : split(config_toml, '\n')) {
    const std::string line = trimmed(raw);
    if (line.empty() || line[0] == '#') continue;
    if (starts_with(line, "[[") && ends_with(line, "]]")) {
      const std::string name = line.substr(2, line.size() - 4);
      section = cat(name, "[", counts[name]++, "].");
    } else if (line[0] == '[' && line.back() == ']') {
      section = line.substr(1, line.size() - 2) + ".";
    } else if (const std::size_t equals = line.find('='); equals != std::string::npos) {
      const std::string value = trimmed(line.substr(equals + 1));
      if (value != "[") out[section + trimmed(line.substr(0, equals))] = unquoted(value);
    }
  }
  return out;
}

std::string facts_html(const Settings& settings) {
  const std::vector<std::pair<const char*, std::string>> facts{
      {"Reward", rewards_of(settings)},
      {"Method", together(settings, {{"method.name", ""}, {"method.preset", " preset"}})},
      {"Policy", find(settings, "policy.kind")},
      {"Model",
       together(settings, {{"model.file", ""}, {"model.family", ""}, {"generator.file", ""}})},
      {"Data", together(settings, {{"data.path", ""}, {"targets.path", ""}, {"data.format", ""}})},
      {"Sampler",
       together(settings,
                {{"sampler.name", ""}, {"sampler.steps", " steps"}, {"sampler.grid", " grid"}})},
      {"Training", together(settings, {{"train.steps", " steps"}, {"batch", " samples a step"}})},
      {"Learning rate", find(settings, "train.learning_rate")},
      {"Seed", find(settings, "seed")},
  };
  std::string out;
  for (const auto& [name, value] : facts) {
    if (!value.empty()) out += cat("<dt>", name, "</dt><dd>", xml_text(value), "</dd>");
  }
  return out.empty() ? "" : cat("<dl class=\"facts\">", out, "</dl>");
}

std::string verdict_html(const Json& check, const std::vector<Json>& lines,
                         const Settings& settings) {
  if (!check.is_null()) return verdict_of_check(check);
  const double step = last_number(lines, "step");
  const std::string done = std::isfinite(step) ? cat("After ", compact(step, 9), " of ",
                                                     find(settings, "train.steps"), " steps")
                                               : "Nothing logged yet";
  if (const double reward = last_number(lines, "eval_reward"); std::isfinite(reward)) {
    const Estimate now{reward, last_number(lines, "eval_reward_se")};
    const Estimate base{last_number(lines, "base_reward"), last_number(lines, "base_reward_se")};
    return verdict("", cat(done, ": mean reward ", rounded(now), ", base ", rounded(base),
                           ". The law has not been checked: run tiltflow eval --run."));
  }
  for (const auto& [key, name] :
       {std::pair{"validation_loss", "validation loss"}, {"loss", "loss"}}) {
    if (const double loss = last_number(lines, key); std::isfinite(loss)) {
      return verdict("", cat(done, ": ", name, " ", compact(loss), "."));
    }
  }
  return verdict("", done + ".");
}

std::string warnings_html(const std::vector<Json>& lines) {
  std::string items;
  for (const Json& line : lines) {
    if (!line.contains("warning") || !line["warning"].is_string()) continue;
    std::vector<std::string> words;
    for (const char* key : {"seen", "meaning", "change"}) {
      if (line.contains(key) && line[key].is_string()) {
        words.push_back(line[key].get<std::string>());
      }
    }
    const std::string text = words.empty() ? line["warning"].get<std::string>() : join(words, ". ");
    items += cat("<li>Step ", compact(line.value("step", 0.0), 9), ": <b>",
                 xml_text(line["warning"].get<std::string>()), "</b>. ", xml_text(text), "</li>");
  }
  return items.empty()
             ? ""
             : cat("<h2 id=\"warnings\">Warnings</h2><ul class=\"warnings\">", items, "</ul>");
}

}  // namespace tiltflow
