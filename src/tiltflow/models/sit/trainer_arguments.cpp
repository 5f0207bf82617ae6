#include "tiltflow/models/sit/trainer_arguments.h"

#include <cstdlib>

#include "tiltflow/base/error.h"
#include "tiltflow/base/log.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/models/sit/config.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

using Args = std::map<std::string, std::string>;
using Found = std::map<std::string, Stated>;

constexpr const char* kGiveHeads =
    "give the number of heads: --model-arg num_heads=N, or model.args.num_heads in a config";

const Stated* find(const StatedIdentity& stated, const char* name) {
  const auto found = stated.args.find(name);
  return found == stated.args.end() ? nullptr : &found->second;
}

void warn(const std::string& where, const std::string& source, const std::string& shown) {
  log_warn(cat(where, ": ", source, ", but its tensors say ", shown, ": the tensors count"));
}

void refuse_relatives(const StatedIdentity& stated, const std::string& where) {
  if (!stated.unsupported.empty()) {
    fail(ErrorKind::kBadFile,
         cat(where, ": ", join(stated.unsupported, ", "), ": an architecture other than SiT's"),
         "tiltflow takes the official SiT: fixed positions, plain attention, GELU");
  }
  const Stated* model = find(stated, "model");
  const std::size_t at = model ? model->value.find("DiT") : std::string::npos;
  if (at != std::string::npos) {
    fail(ErrorKind::kBadFile,
         cat(where, ": ", model->source,
             ": a DiT has a SiT's tensors, but predicts noise at 1000 discrete times"),
         "tiltflow takes SiT checkpoints");
  }
}

// Of `num_heads` and of the size's name; "" when neither says it.
Stated heads(const StatedIdentity& stated, const SitConfig& shown, const std::string& where) {
  const Stated* number = find(stated, "num_heads");
  const Stated* model = find(stated, "model");
  if (number && !number->problem.empty()) {
    fail(ErrorKind::kBadFile, cat(where, ": ", number->problem), kGiveHeads);
  }
  const std::string size = model ? official_sit_size(model->value) : "";
  if (size.empty()) return number ? *number : Stated{};
  const SitConfig preset = sit_preset(size);
  if (preset.hidden_size != shown.hidden_size) {
    const std::string other =
        cat(model->source, " has width ", preset.hidden_size, ", the tensors ", shown.hidden_size);
    if (!number && shown.num_heads == 0) {
      fail(ErrorKind::kBadFile, cat(where, ": ", other), kGiveHeads);
    }
    log_warn(cat(where, ": ", other, ": the tensors count"));
    return number ? *number : Stated{};
  }
  if (number && number->value != cat(preset.num_heads)) {
    fail(ErrorKind::kBadFile,
         cat(where, ": ", number->source, " and ", model->source, " contradict each other"),
         kGiveHeads);
  }
  return {cat(preset.num_heads), number ? number->source : model->source, ""};
}

// Sizes that show: a different value is named.
void compare_with_tensors(const StatedIdentity& stated, const SitConfig& shown, const Args& given,
                          const std::string& where) {
  for (const auto& [name, value] : to_args(shown)) {
    const Stated* said = find(stated, name.c_str());
    const bool decided =
        name == "num_heads" || name == "num_classes" || name == "class_dropout_prob";
    if (!said || decided || given.count(name) || said->value == value) continue;
    if (std::strtod(said->value.c_str(), nullptr) != std::strtod(value.c_str(), nullptr) ||
        name == "learn_sigma") {
      warn(where, said->source, cat(name, " ", value));
    }
  }
  const Stated* image = find(stated, "image_size");
  const std::int64_t side = image ? std::atoll(image->value.c_str()) : 0;
  if (image && (side < shown.input_size || side % shown.input_size != 0)) {
    warn(where, image->source, cat("input_size ", shown.input_size));
  }
}

// Whether the label table has a row for "no label" does not show without the number of classes.
void add_label_table(const StatedIdentity& stated, const SitConfig& shown, const Args& given,
                     const std::string& where, Found& out) {
  const Stated* classes = find(stated, "num_classes");
  const Stated* dropout = find(stated, "class_dropout_prob");
  if (given.count("num_classes") || given.count("class_dropout_prob")) return;
  const std::string rows = cat(shown.num_classes + 1);
  if (classes && classes->value == rows) {
    out["num_classes"] = *classes;
  } else if (classes && classes->value != cat(shown.num_classes)) {
    warn(where, classes->source, cat(rows, " rows in the table of labels"));
  } else if (!classes && dropout && std::atof(dropout->value.c_str()) == 0) {
    out["class_dropout_prob"] = *dropout;
  }
}

}  // namespace

Found sit_trainer_arguments(const ParameterSet& tensors, const StatedIdentity& stated,
                            const Args& given, const std::string& where) {
  refuse_relatives(stated, where);
  const SitConfig shown = shown_sit_config(tensors);
  Found out;
  if (!given.count("num_heads") && !given.count("size")) {
    if (const Stated found = heads(stated, shown, where); !found.value.empty()) {
      out["num_heads"] = found;
    }
  }
  compare_with_tensors(stated, shown, given, where);
  add_label_table(stated, shown, given, where, out);
  return out;
}

}  // namespace tiltflow
