#include "tiltflow/models/model_identity.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/models/model_file.h"
#include "tiltflow/models/sit/config.h"
#include "tiltflow/models/sit/trainer_arguments.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

using Args = std::map<std::string, std::string>;
using Arguments = std::map<std::string, Stated>;

bool is_velocity_model(const std::string& family) {
  const auto& known = velocity_model_families();
  return std::find(known.begin(), known.end(), family) != known.end();
}

IdentityRow flow_row(const std::string& name, const Stated& stated, const Args& overrides) {
  const auto given = overrides.find(name);
  if (given != overrides.end()) return {name, given->second, "given", ""};
  return {name, stated.value, stated.source, stated.problem};
}

Args values_of(const Arguments& arguments) {
  Args out;
  for (const auto& [name, said] : arguments) out[name] = said.value;
  return out;
}

// A SiT's complete arguments: what was said, and what shows in the tensors.
std::vector<IdentityRow> sit_rows(const ParameterSet& tensors, const Arguments& arguments) {
  const SitConfig shown = shown_sit_config(tensors);
  const bool said = arguments.count("num_heads") || arguments.count("size");
  const bool heads_known = said || shown.num_heads > 0;
  Args values = values_of(arguments);
  if (!heads_known) values["num_heads"] = "1";
  const SitConfig config = infer_sit_config(tensors, values);
  std::vector<IdentityRow> out;
  for (const auto& [name, value] : to_args(config)) {
    const auto found = arguments.find(name);
    IdentityRow row{name, value, found == arguments.end() ? "its tensors" : found->second.source,
                    ""};
    if (name == "num_heads" && !said) {
      row.source = heads_known ? "the official size of this width" : "";
    }
    if (name == "num_heads" && !heads_known) row.value = "";
    out.push_back(row);
  }
  return out;
}

}  // namespace

Arguments constructor_arguments(const TensorFile& file, const std::string& family,
                                const StatedIdentity& stated, const Args& overrides,
                                const std::string& where) {
  const Args own = metadata_args(file.metadata, where);
  Arguments out;
  for (const auto& [name, value] : own) {
    out[name] = {value, "tiltflow.args", ""};
    const auto said = stated.args.find(name);
    if (said == stated.args.end() || overrides.count(name) || said->second.value == value) continue;
    fail(ErrorKind::kBadFile,
         cat(where, ": tiltflow.args (", name, " = ", value, ") and ", said->second.source,
             " contradict each other"),
         cat("decide with --model-arg ", name, "=VALUE, or model.args in a config"));
  }
  for (const auto& [name, value] : overrides) out[name] = {value, "given", ""};
  if (family == "sit") {
    out.merge(sit_trainer_arguments(file.tensors, stated, values_of(out), where));
  }
  return out;
}

std::vector<IdentityRow> model_identity(const TensorFile& file, const Args& overrides,
                                        const std::string& where) {
  const std::string family = model_family(file.tensors, file.metadata);
  if (!is_velocity_model(family)) return {};
  const StatedIdentity stated = stated_identity(file.metadata);
  Args constructor = overrides;
  constructor.erase("path");
  constructor.erase("prediction");
  const Arguments arguments = constructor_arguments(file, family, stated, constructor, where);
  const bool ours = file.metadata.count("tiltflow.family") != 0;
  std::vector<IdentityRow> out{{"family", family, ours ? "tiltflow.family" : "its tensors", ""},
                               flow_row("path", stated.path, overrides),
                               flow_row("prediction", stated.prediction, overrides)};
  if (family == "sit") {
    const std::vector<IdentityRow> rows = sit_rows(file.tensors, arguments);
    out.insert(out.end(), rows.begin(), rows.end());
  } else {
    for (const auto& [name, said] : arguments) out.push_back({name, said.value, said.source, ""});
  }
  return out;
}

Args identity_metadata(const TensorFile& file, const std::vector<IdentityRow>& identity) {
  if (identity.empty()) return file.metadata;
  Args out = without_identity(file.metadata);
  Args constructor;
  for (const IdentityRow& row : identity) {
    if (row.value.empty()) continue;
    if (row.name == "family" || row.name == "path" || row.name == "prediction") {
      out["tiltflow." + row.name] = row.value;
    } else {
      constructor[row.name] = row.value;
    }
  }
  out["format"] = "pt";
  out["tiltflow.args"] = nlohmann::json(constructor).dump();
  return out;
}

std::string official_path_name(const std::string& path) {
  if (path == "linear") return "Linear";
  std::string out = path;
  std::transform(out.begin(), out.end(), out.begin(),
                 [](unsigned char c) { return std::toupper(c); });
  return out;
}

}  // namespace tiltflow
