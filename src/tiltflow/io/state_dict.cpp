#include "tiltflow/io/state_dict.h"

#include <algorithm>
#include <array>
#include <set>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

using Names = std::vector<std::string>;

// In order of preference.
constexpr std::array kAverages{"ema",
                               "ema_model",
                               "model_ema",
                               "ema_state_dict",
                               "state_dict_ema",
                               "ema_weights",
                               "model_ema_state_dict",
                               "params_ema",
                               "net_ema",
                               "g_ema",
                               "averaged"};
constexpr std::array kWeights{
    "model",   "state_dict", "model_state_dict", "online_model", "params", "net",
    "network", "weights",    "module",           "generator",    "g"};
// More attributes under which trainers keep the network.
constexpr std::array kWrappers{"base_model", "diffusion_model", "transformer",  "dit", "sit",
                               "denoiser",   "velocity",        "vector_field", "flow"};
// Inserted by torch.compile, FSDP and activation checkpointing wherever a module was wrapped.
constexpr std::array kInserted{"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module",
                               "_forward_module"};
constexpr const char* kRest =
    "rest";  // the section of what has no prefix, beside averaged copies that have one
constexpr std::array kCounters{"n_averaged", "num_updates", "decay",      "initted",
                               "step",       "steps",       "num_batches"};

template <std::size_t n>
bool is_one_of(const std::array<const char*, n>& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// A name that tells which weights these are, or an attribute that held the network.
bool is_wrapper(std::string_view name) {
  return is_one_of(kAverages, name) || is_one_of(kWeights, name) || is_one_of(kWrappers, name);
}

std::string_view first_part(std::string_view name) { return name.substr(0, name.find('.')); }

std::string without_inserted(const std::string& name) {
  Names kept;
  for (const std::string& part : split(name, '.')) {
    if (!is_one_of(kInserted, part)) kept.push_back(part);
  }
  return join(kept, ".");
}

bool is_counter(const std::string& name, const at::Tensor& tensor) {
  return tensor.numel() == 1 && is_one_of(kCounters, name.substr(name.rfind('.') + 1));
}

bool is_adapter(const ParameterSet& tensors) {
  return std::any_of(tensors.begin(), tensors.end(), [](const auto& item) {
    return item.first.find("lora_") != std::string::npos;
  });
}

ParameterSet below(const ParameterSet& tensors, std::string_view prefix) {
  ParameterSet out;
  for (const auto& [name, tensor] : tensors) {
    if (starts_with(name, prefix)) out.add(name.substr(prefix.size()), tensor);
  }
  return out;
}

// The tensors without inserted names, and without counters unless there is nothing else.
ParameterSet cleaned(const ParameterSet& tensors, const std::string& where) {
  const bool only_counters = std::all_of(tensors.begin(), tensors.end(), [](const auto& item) {
    return is_counter(item.first, item.second);
  });
  ParameterSet out;
  for (const auto& [name, tensor] : tensors) {
    if (!only_counters && is_counter(name, tensor)) continue;
    const std::string clean = without_inserted(name);
    if (out.contains(clean)) {
      fail(ErrorKind::kBadFile,
           cat(where, ": two tensors are named '", clean, "' without the names of wrappers"),
           "save one state dict without wrappers: model.module.state_dict()");
    }
    out.add(clean, tensor);
  }
  return out;
}

// "module." around some tensors and not around others: two models, or one that was damaged while it
// was renamed.
void refuse_mixture(const ParameterSet& tensors, std::string_view wrapper,
                    const std::string& where) {
  const std::string prefix = cat(wrapper, ".");
  std::string with, without;
  for (const auto& [name, tensor] : tensors) (starts_with(name, prefix) ? with : without) = name;
  if (with.empty() || without.empty()) return;
  fail(ErrorKind::kBadFile,
       cat(where, ": some tensors are named '", prefix, "...' ('", with, "'), others are not ('",
           without, "')"),
       "save one state dict under one way of naming");
}

struct FlatSections {
  Names names;
  ParameterSet rest;  // tensors outside every section
};

FlatSections sections_of(const ParameterSet& tensors) {
  FlatSections out;
  for (const auto& [name, tensor] : tensors) {
    const std::string part(first_part(name));
    const bool known =
        part.size() < name.size() && (is_one_of(kAverages, part) || is_one_of(kWeights, part));
    if (!known) {
      out.rest.add(name, tensor);
    } else if (std::find(out.names.begin(), out.names.end(), part) == out.names.end()) {
      out.names.push_back(part);
    }
  }
  return out;
}

// Averaged copies ("ema.NAME") beside the weights they belong to ("NAME").
std::string average_beside(const ParameterSet& tensors, const FlatSections& flat,
                           const std::string& where) {
  for (const std::string& name : flat.names) {
    if (!is_average(name)) continue;
    const ParameterSet average = below(tensors, name + ".");
    const auto has_partner = [&](const auto& item) { return flat.rest.contains(item.first); };
    const auto partners = std::count_if(average.begin(), average.end(), has_partner);
    if (partners == 0) continue;
    if (static_cast<std::size_t>(partners) != average.size() ||
        average.size() != flat.rest.size()) {
      refuse_mixture(tensors, name, where);
    }
    return name;
  }
  return "";
}

}  // namespace

bool is_average(std::string_view section) { return is_one_of(kAverages, first_part(section)); }

std::string choose_section(const Names& sections, const std::string& where) {
  const auto has = [&](std::string_view name) {
    return std::find_if(sections.begin(), sections.end(),
                        [&](const std::string& s) { return first_part(s) == name; });
  };
  if (std::find(sections.begin(), sections.end(), "") != sections.end()) return "";
  for (const char* name : kAverages) {
    if (const auto found = has(name); found != sections.end()) return *found;
  }
  for (const char* name : kWeights) {
    if (const auto found = has(name); found != sections.end()) return *found;
  }
  if (sections.size() == 1) return sections.front();
  fail(ErrorKind::kBadFile, cat(where, ": has several state dicts with names that say nothing"),
       cat("choose one (--weights NAME); it has: ", join(sections, ", ")));
}

StateDict without_wrappers(const ParameterSet& tensors, const std::string& where) {
  StateDict out;
  if (is_adapter(tensors)) {
    out.tensors = tensors;
    return out;
  }
  out.tensors = cleaned(tensors, where);
  refuse_mixture(out.tensors, "module", where);
  for (bool again = true; again && !out.tensors.empty();) {
    const std::string prefix = cat(first_part(out.tensors.begin()->first), ".");
    const auto wrapped = [&](const auto& item) { return starts_with(item.first, prefix); };
    const bool known = is_wrapper(first_part(prefix));
    again = known && std::all_of(out.tensors.begin(), out.tensors.end(), wrapped);
    if (!again) continue;
    out.tensors = below(out.tensors, prefix);
    out.prefix += prefix;
    refuse_mixture(out.tensors, "module", where);
  }
  return out;
}

StateDict flat_state_dict(const ParameterSet& tensors, const std::string& section,
                          const std::string& where) {
  const bool adapter = is_adapter(tensors);
  const ParameterSet clean = adapter ? tensors : cleaned(tensors, where);
  const FlatSections flat = adapter ? FlatSections{} : sections_of(clean);
  const std::string average = average_beside(clean, flat, where);
  Names names;
  if (flat.rest.empty()) {
    names = flat.names;
  } else if (!average.empty()) {
    names = {average, kRest};
  }
  const bool part = !section.empty() && names.empty() && !below(clean, section + ".").empty();
  if (part) names = {section};  // beside losses, metrics, ...: only when asked for
  if (!section.empty() && std::find(names.begin(), names.end(), section) == names.end()) {
    fail(ErrorKind::kBadFile, cat(where, ": has no state dict '", section, "'"),
         names.empty() ? "its tensors are one state dict" : cat("it has: ", join(names, ", ")));
  }
  if (names.size() < 2 && !part) return without_wrappers(clean, where);
  const std::string chosen = section.empty() ? choose_section(names, where) : section;
  StateDict out = without_wrappers(chosen == kRest ? flat.rest : below(clean, chosen + "."), where);
  out.section = chosen;
  out.sections = names;
  return out;
}

}  // namespace tiltflow
