// tiltflow inspect: what a file of tensors holds.
#include <algorithm>
#include <iostream>
#include <nlohmann/json.hpp>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/json_lines.h"
#include "tiltflow/io/tensor_file.h"
#include "tiltflow/io/torch_file.h"
#include "tiltflow/models/model_file.h"
#include "tiltflow/models/model_identity.h"
#include "tiltflow/tensor/aten.h"
#include "verbs.h"

namespace tiltflow::app {
namespace {

// All sections of a PyTorch checkpoint under their dotted names; what is not a tensor as metadata
// text.
TensorFile read_everything(const std::string& path) {
  if (tensor_format(path) != TensorFormat::kTorch) return read_tensors(path);
  const TorchFile file = read_torch_file(path);
  const PickleNode& root = *file.document.root;
  TensorFile out{tensors_below(file, root), {}};
  if (!root.is(PickleNode::Kind::kDict)) return out;
  for (const auto& [key, value] : root.entries) {
    const std::string name = key->is(PickleNode::Kind::kText) ? key->text : pickle_text(*key);
    const bool holds_tensors =
        std::any_of(out.tensors.begin(), out.tensors.end(),
                    [&](const auto& item) { return starts_with(item.first, name + "."); });
    if (!is_tensor(*value) && !holds_tensors) out.metadata[name] = pickle_text(*value, 2000);
  }
  return out;
}

// What loading would take of the file, or why it would take nothing.
struct Model {
  std::string family, weights, problem;
  std::vector<IdentityRow> identity;
};

Model model_in(const std::string& path) {
  Model out;
  try {
    const StateDictFile file = read_state_dict(path);
    const TensorFile content{file.tensors, file.metadata};
    out.family = model_family(content.tensors, content.metadata);
    if (!file.section.empty()) out.weights = cat(file.section, " of ", join(file.sections, ", "));
    if (!file.prefix.empty()) {
      out.weights += cat(out.weights.empty() ? "" : ", ", "names without '", file.prefix, "'");
    }
    out.identity = model_identity(content, {}, path);
  } catch (const Error& error) {
    out.problem = error.what();
  }
  return out;
}

nlohmann::ordered_json identity_json(const Model& model) {
  nlohmann::ordered_json out = nlohmann::ordered_json::object();
  if (!model.weights.empty()) out["weights"] = model.weights;
  if (!model.problem.empty()) out["problem"] = model.problem;
  for (const IdentityRow& row : model.identity) {
    out[row.name] = {{"value", row.value}, {"source", row.source}};
    if (!row.problem.empty()) out[row.name]["problem"] = row.problem;
  }
  return out;
}

void print_identity(const Model& model) {
  const auto line = [](const std::string& name, const std::string& value,
                       const std::string& source) {
    std::cout << "identity: " << pad_right(name, 20) << pad_right(value, 10)
              << (source.empty() ? "" : " from ") << source << "\n";
  };
  if (!model.weights.empty()) line("weights", model.weights, "");
  for (const IdentityRow& row : model.identity) {
    const bool flow = row.name == "path" || row.name == "prediction";
    const std::string unsaid = row.name == "path"         ? "(linear)"
                               : row.name == "prediction" ? "(velocity)"
                                                          : "?";
    if (!row.problem.empty()) {
      line(row.name, "?", row.problem);
    } else if (row.value.empty()) {
      line(row.name, unsaid, flow ? "nothing: the default" : "nothing: give it with --model-arg");
    } else {
      line(row.name, row.value, row.source);
    }
  }
  if (!model.problem.empty()) std::cout << "identity: " << model.problem << "\n";
}

nlohmann::ordered_json tensor_row(const std::string& name, const at::Tensor& tensor) {
  const at::Tensor values = tensor.to(at::kDouble);
  const std::int64_t bad = tensor.numel() - at::isfinite(values).sum().item<std::int64_t>();
  nlohmann::ordered_json row{{"name", name},
                             {"type", c10::toString(tensor.scalar_type())},
                             {"shape", tensor.sizes().vec()},
                             {"non_finite", bad}};
  if (tensor.numel() > 0) {
    row["mean"] = json_number(values.mean().item<double>());
    row["deviation"] = json_number(values.std(false).item<double>());
    row["largest"] = json_number(values.abs().max().item<double>());
  }
  return row;
}

void print_tensor_row(const nlohmann::ordered_json& row, std::size_t width) {
  std::cout << pad_right(row["name"].get<std::string>(), width)
            << pad_right(row["type"].get<std::string>(), 10) << pad_right(row["shape"].dump(), 20);
  if (row.contains("mean")) {
    std::cout << " mean " << pad_left(compact(number_from_json(row["mean"]), 4), 11)
              << "  deviation " << pad_left(compact(number_from_json(row["deviation"]), 4), 10);
  }
  if (row["non_finite"].get<std::int64_t>() > 0) {
    std::cout << "  NON-FINITE " << row["non_finite"];
  }
  std::cout << "\n";
}

int inspect(const std::string& file, bool as_json) {
  const TensorFile content = read_everything(file);
  const Model model = model_in(file);
  const std::string family = model.family.empty() ? "unknown" : model.family;
  nlohmann::ordered_json out{{"file", file},
                             {"looks_like", family},
                             {"tensors", nlohmann::ordered_json::array()},
                             {"parameters", content.tensors.numel()},
                             {"bytes", content.tensors.bytes()},
                             {"metadata", content.metadata},
                             {"identity", identity_json(model)}};
  for (const auto& [name, tensor] : content.tensors) {
    out["tensors"].push_back(tensor_row(name, tensor));
  }
  if (as_json) {
    std::cout << out.dump() << std::endl;
    return 0;
  }
  std::size_t width = 0;
  for (const auto& [name, tensor] : content.tensors) width = std::max(width, name.size() + 2);
  for (const auto& row : out["tensors"]) print_tensor_row(row, width);
  for (const auto& [key, value] : content.metadata) std::cout << key << " = " << value << "\n";
  print_identity(model);
  std::cout << content.tensors.size() << " tensors, " << content.tensors.numel() << " numbers, "
            << format_bytes(content.tensors.bytes()) << "; looks like: " << family << std::endl;
  return 0;
}

}  // namespace

void add_inspect(CLI::App& program, Action& action) {
  auto* verb = program.add_subcommand(
      "inspect", "list the tensors, statistics, metadata and identity of a model file");
  auto file = std::make_shared<std::string>();
  auto json = std::make_shared<bool>(false);
  verb->add_option("file", *file,
                   "safetensors, sharded safetensors (index.json) or PyTorch checkpoint")
      ->required();
  verb->add_flag("--json", *json, "one JSON object on stdout");
  verb->callback([=, &action] { action = [file, json] { return inspect(*file, *json); }; });
}

}  // namespace tiltflow::app
