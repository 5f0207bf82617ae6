#include "tiltflow/policy/peft_config.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>
#include <nlohmann/json.hpp>
#include <regex>

#include "tiltflow/base/error.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/strings.h"

namespace tiltflow {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kMergeFirst =
    "merge the adapter with PEFT (merge_and_unload) and load the merged model";

// Understood here, or without effect on a trained adapter: how it was initialised, trained, found
// and saved. Which layers were adapted shows in the tensors.
constexpr std::array kAllowed{"peft_type",
                              "peft_version",
                              "auto_mapping",
                              "base_model_name_or_path",
                              "revision",
                              "task_type",
                              "inference_mode",
                              "r",
                              "lora_alpha",
                              "lora_dropout",
                              "use_rslora",
                              "rank_pattern",
                              "alpha_pattern",
                              "init_lora_weights",
                              "target_modules",
                              "exclude_modules",
                              "layers_to_transform",
                              "layers_pattern",
                              "bias",
                              "eva_config",
                              "loftq_config",
                              "corda_config",
                              "lora_ga_config",
                              "runtime_config",
                              "qalora_group_size",
                              "megatron_core",
                              "ensure_weight_tying"};
// Initialisations after which the base model is still the base model.
constexpr std::array kInitialisations{"gaussian", "eva", "orthogonal"};

// null, false, 0, "", {} and [] switch an option off.
bool is_off(const Json& value) {
  if (value.is_null()) return true;
  if (value.is_boolean()) return !value.get<bool>();
  if (value.is_number()) return value.get<double>() == 0;
  return value.is_string() ? value.get<std::string>().empty() : value.empty();
}

void refuse_options(const Json& config, const std::string& where) {
  for (const auto& [name, value] : config.items()) {
    if (is_off(value) || std::find(kAllowed.begin(), kAllowed.end(), name) != kAllowed.end()) {
      continue;
    }
    fail(ErrorKind::kBadFile, cat(where, ": ", name, " is not supported"), kMergeFirst);
  }
  if (const auto bias = config.find("bias");
      bias != config.end() && !is_off(*bias) && *bias != "none") {
    fail(ErrorKind::kBadFile,
         cat(where, ": bias = ", bias->dump(),
             " is not supported: biases were trained beside the adapter"),
         kMergeFirst);
  }
}

// PiSSA, OLoRA, CorDA, LoftQ, ... take a part out of the base's weights when PEFT loads them.
void refuse_changed_base(const Json& config, const std::string& where) {
  const auto found = config.find("init_lora_weights");
  if (found == config.end() || found->is_null() || found->is_boolean()) return;
  const std::string name = found->is_string() ? found->get<std::string>() : found->dump();
  if (std::find(kInitialisations.begin(), kInitialisations.end(), name) != kInitialisations.end()) {
    return;
  }
  fail(ErrorKind::kBadFile,
       cat(where, ": init_lora_weights = \"", name,
           "\" is not supported: it changes the base model's weights, and the adapter fits only "
           "those"),
       "save it as a plain LoRA, save_pretrained(DIR, "
       "path_initial_model_for_weight_conversion=...), or merge_and_unload()");
}

}  // namespace

PeftConfig::PeftConfig(const std::filesystem::path& file) : where_(file.string()) {
  try {
    const Json config = Json::parse(read_file(file, std::size_t{1} << 24));
    if (!config.is_object()) {
      fail(ErrorKind::kBadFile, cat(where_, ": not an adapter configuration: no JSON object"));
    }
    if (const std::string type = config.value("peft_type", "LORA"); type != "LORA") {
      fail(ErrorKind::kBadFile, cat(where_, ": peft_type ", type, " is not LORA"), kMergeFirst);
    }
    refuse_options(config, where_);
    refuse_changed_base(config, where_);
    alpha_ = config.at("lora_alpha").get<double>();
    rank_ = config.value("r", std::int64_t{0});
    root_ = config.value("use_rslora", false);
    const auto patterns = [&](const char* name) {
      return config.contains(name) && !config[name].is_null() ? config[name] : Json::object();
    };
    const Json alphas = patterns("alpha_pattern");
    const Json ranks = patterns("rank_pattern");
    for (const auto& [pattern, value] : alphas.items()) {
      alphas_.emplace_back(pattern, value.get<double>());
    }
    for (const auto& [pattern, value] : ranks.items()) {
      ranks_.emplace_back(pattern, value.get<std::int64_t>());
    }
  } catch (const nlohmann::json::exception& error) {
    fail(ErrorKind::kBadFile, cat(where_, ": not an adapter configuration: ", error.what()));
  }
  if (!(alpha_ > 0) || !std::isfinite(alpha_)) {
    fail(ErrorKind::kBadFile, cat(where_, ": lora_alpha must be positive"));
  }
}

double PeftConfig::scale(const std::string& layer, std::int64_t rank) const {
  double alpha = alpha_;
  std::int64_t expected = rank_;
  const auto fits = [&](const auto& pattern) { return ends_like(layer, pattern.first); };
  if (const auto found = std::find_if(alphas_.begin(), alphas_.end(), fits);
      found != alphas_.end()) {
    alpha = found->second;
  }
  if (const auto found = std::find_if(ranks_.begin(), ranks_.end(), fits); found != ranks_.end()) {
    expected = found->second;
  }
  if (expected != 0 && expected != rank) {
    fail(ErrorKind::kBadFile,
         cat(where_, ": layer '", layer, "' has rank ", rank, " in the tensors and ", expected,
             " here"),
         "is it the configuration of another adapter?");
  }
  return alpha / (root_ ? std::sqrt(static_cast<double>(rank)) : static_cast<double>(rank));
}

// Patterns are regular expressions for the end of a name. They come from a file and the matcher
// backtracks, so what could take for ever is refused: more than two repetitions, or a repeated
// group. So is what Python reads otherwise than C++.
bool PeftConfig::ends_like(const std::string& layer, const std::string& pattern) const {
  const auto repeats = [](char c) { return c == '*' || c == '+' || c == '?' || c == '{'; };
  bool hard = pattern.size() > 200 || layer.size() > 200 ||
              std::count_if(pattern.begin(), pattern.end(), repeats) > 2;
  for (std::size_t i = 1; i < pattern.size(); ++i) {
    hard = hard || (pattern[i - 1] == ')' && repeats(pattern[i]));
  }
  for (std::size_t i = 1; i < pattern.size(); ++i) {
    if (pattern[i - 1] != '\\') continue;
    const bool alike = !std::isalnum(static_cast<unsigned char>(pattern[i])) ||
                       std::string_view("dDwWsSbB").find(pattern[i]) != std::string_view::npos;
    hard = hard || !alike;  // \A and \Z are anchors in Python and letters here
    ++i;
  }
  if (hard) {
    fail(ErrorKind::kBadFile, cat(where_, ": the pattern '", pattern, "' is too complicated"),
         kMergeFirst);
  }
  try {
    return std::regex_match(layer, std::regex("(.*\\.)?(" + pattern + ")"));
  } catch (const std::regex_error&) {
    fail(ErrorKind::kBadFile,
         cat(where_, ": the pattern '", pattern, "' is no regular expression"));
  }
}

}  // namespace tiltflow
