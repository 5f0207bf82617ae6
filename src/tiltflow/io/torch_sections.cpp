// Which dicts of a PyTorch checkpoint are state dicts.
#include <algorithm>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/torch_file.h"

namespace tiltflow {

namespace {

using Kind = PickleNode::Kind;

bool has_tensor(const PickleNode& node) {
  return node.is(Kind::kDict) &&
         std::any_of(node.entries.begin(), node.entries.end(),
                     [](const auto& entry) { return is_tensor(*entry.second); });
}

// A dict of tensors. Single tensors beside other things (a random state, a step, a mean among
// arguments) do not make one: the names of a network's tensors have dots, or there is little else.
bool is_state_dict(const PickleNode& node) {
  if (!has_tensor(node)) return false;
  std::size_t tensors = 0;
  bool dotted = false;
  bool sections = false;
  for (const auto& [key, value] : node.entries) {
    const bool tensor = is_tensor(*value);
    tensors += tensor;
    dotted = dotted || (tensor && key->text.find('.') != std::string::npos);
    sections = sections || has_tensor(*value);
  }
  return dotted || (!sections && 2 * tensors > node.entries.size());
}

// A dict of tensors at `node` or one level below, by its dotted name.
void find_sections(const std::string& name, const PickleNode& node, std::vector<std::string>& out,
                   int depth) {
  if (is_state_dict(node)) {
    out.push_back(name);
    return;
  }
  if (depth == 0 || !node.is(Kind::kDict) || node.find("param_groups")) return;
  for (const auto& [key, value] : node.entries) {
    if (key->is(Kind::kText)) find_sections(cat(name, ".", key->text), *value, out, depth - 1);
  }
}

}  // namespace

std::vector<std::string> state_dict_sections(const TorchFile& file) {
  const PickleNode& root = *file.document.root;
  if (is_state_dict(root)) return {""};
  std::vector<std::string> out;
  if (!root.is(Kind::kDict)) return out;
  for (const auto& [key, value] : root.entries) {
    if (key->is(Kind::kText)) find_sections(key->text, *value, out, 1);
  }
  if (out.empty() && has_tensor(root)) out.push_back("");
  return out;
}

const PickleNode* state_dict_node(const TorchFile& file, const std::string& section) {
  const PickleNode* node = file.document.root;
  if (section.empty()) return node;
  if (const PickleNode* whole = node->find(section)) return whole;
  const std::size_t dot = section.find('.');
  const PickleNode* outer = dot == std::string::npos ? nullptr : node->find(section.substr(0, dot));
  return outer ? outer->find(section.substr(dot + 1)) : nullptr;
}

ParameterSet state_dict(const TorchFile& file, const std::string& section) {
  const PickleNode* node = state_dict_node(file, section);
  if (!node || !has_tensor(*node)) {
    const std::vector<std::string> sections = state_dict_sections(file);
    fail(ErrorKind::kBadFile,
         cat(file.where, section.empty() ? ": is no bare state dict"
                                         : cat(": has no state dict '", section, "'")),
         sections.empty() ? "see `tiltflow inspect`" : cat("it has: ", join(sections, ", ")));
  }
  return tensors_below(file, *node);
}

}  // namespace tiltflow
