#include "tiltflow/io/checkpoint_arguments.h"

#include <algorithm>

#include "tiltflow/base/strings.h"

namespace tiltflow {
namespace {

using Kind = PickleNode::Kind;
using Arguments = std::map<std::string, std::string>;
using Entries = std::vector<std::pair<std::string, const PickleNode*>>;

constexpr std::size_t kMost = 2000;
constexpr std::size_t kMostVisits = 100'000;  // shared nodes are visited once for every way to them
constexpr int kDeepest = 8;
constexpr const char* kOwn = "metadata";  // the dict of texts that write_torch_file puts beside the tensors

// OmegaConf and ConfigDict keep their values one attribute further down.
const PickleNode* inner(const PickleNode& state) {
  for (const char* attribute : {"_content", "_fields", "_val"}) {
    if (const PickleNode* found = state.find(attribute)) return found;
  }
  return nullptr;
}

// The node itself, or what its class wraps: a value of OmegaConf, a member of an enumeration.
const PickleNode& unwrapped(const PickleNode& node) {
  if (!node.is(Kind::kObject)) return node;
  if (node.state) {
    const PickleNode* found = inner(*node.state);
    return found ? *found : node;
  }
  const bool enumeration = node.entries.empty() && node.items.size() == 1;
  return enumeration ? *node.items[0] : node;
}

void add_entries(const PickleNode& dict, Entries& out) {
  for (const auto& [key, value] : dict.entries) {
    if (key->is(Kind::kText)) out.emplace_back(key->text, value);
  }
}

// Named values of a dict, of a subclass of dict, or of an object. Of equal names the last one counts.
Entries named_values(const PickleNode& node) {
  Entries out;
  if (!node.is(Kind::kDict) && !node.is(Kind::kObject)) return out;
  add_entries(node, out);
  if (!node.state) return out;
  add_entries(*node.state, out);
  for (const PickleNode* part : node.state->items) add_entries(*part, out);  // (attributes, slots)
  return out;
}

bool is_scalar(const PickleNode& node) {
  return node.is(Kind::kBool) || node.is(Kind::kInt) || node.is(Kind::kFloat) || node.is(Kind::kText);
}

std::string text_of(const PickleNode& node) {
  return node.is(Kind::kText) ? node.text : pickle_text(node, 2000);
}

// Weights and the state of optimisers and generators say nothing about the model.
bool holds_state(const std::string& name, const PickleNode& node) {
  if (is_scalar(node)) return false;
  const auto tensor_inside = [](const auto& entry) { return is_tensor(*entry.second); };
  if (std::any_of(node.entries.begin(), node.entries.end(), tensor_inside)) return true;
  if (node.find("param_groups") || node.find("_step_count")) return true;
  for (const char* word : {"optim", "sched", "rng", "callback", "loops", "scaler"}) {
    if (name.find(word) != std::string::npos) return true;
  }
  return false;
}

void collect(const std::string& name, const PickleNode& wrapped, Arguments& out, std::size_t& visits, int depth) {
  if (out.size() >= kMost || ++visits > kMostVisits || depth > kDeepest || is_tensor(wrapped)) return;
  const PickleNode& node = unwrapped(wrapped);
  if (is_scalar(node) || node.is(Kind::kNone)) {
    out[name] = text_of(node);
    return;
  }
  const Entries entries = named_values(node);
  for (const auto& [key, value] : entries) {
    if (!starts_with(key, "_")) collect(cat(name, ".", key), *value, out, visits, depth + 1);
  }
  if (entries.empty() && !node.is(Kind::kPersistent)) out[name] = pickle_text(node);
}

void add_named(const Entries& entries, Arguments& out) {
  std::size_t visits = 0;
  for (const auto& [name, value] : entries) {
    if (name == kOwn) {
      for (const auto& [key, text] : named_values(*value)) {
        if (text->is(Kind::kText)) out[key] = text->text;
      }
    } else if (!starts_with(name, "_") && !holds_state(name, unwrapped(*value))) {
      collect(name, *value, out, visits, 0);
    }
  }
}

}  // namespace

Arguments checkpoint_arguments(const PickleNode& root, const PickleNode* section) {
  Arguments out;
  add_named(named_values(root), out);
  if (section && section != &root && section->state) {
    Entries attributes;
    add_entries(*section->state, attributes);
    Arguments more;
    add_named(attributes, more);
    out.merge(more);
  }
  return out;
}

}  // namespace tiltflow
