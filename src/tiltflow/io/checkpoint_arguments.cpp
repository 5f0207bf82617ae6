#include "tiltflow/io/checkpoint_arguments.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "tiltflow/base/strings.h"

namespace tiltflow {
namespace {

using Kind = PickleNode::Kind;
using Arguments = std::map<std::string, std::string>;
using Entries = std::vector<std::pair<std::string, const PickleNode*>>;

constexpr std::size_t kMost = 2000;
constexpr std::size_t kMostVisits = 100'000;  // shared nodes are visited once for every way to them
constexpr int kDeepest = 8;
constexpr std::size_t kLongestText = 2000;
constexpr const char* kOwn =
    "metadata";  // the dict of texts that write_torch_file puts beside the tensors

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

// A whole or real number of NumPy as text, "" for anything else: scalar(dtype('i8', ...)('<', ...),
// bytes).
std::string numpy_number(const PickleNode& node) {
  if (!node.is(Kind::kObject) || !ends_with(node.text, "multiarray.scalar") ||
      node.items.size() != 2) {
    return "";
  }
  const PickleNode& type = *node.items[0];
  const std::string code = type.items.empty() ? "" : type.items[0]->text;
  const std::string& bytes = node.items[1]->text;
  const bool big = type.state && type.state->items.size() > 1 && type.state->items[1]->text == ">";
  if (big || code.size() != 2 || bytes.size() != static_cast<std::size_t>(code[1] - '0')) return "";
  std::int64_t whole = 0;
  if (bytes.size() > sizeof whole || !std::has_single_bit(bytes.size())) return "";
  std::memcpy(&whole, bytes.data(), bytes.size());
  if (code == "b1") return whole ? "True" : "False";
  const int unused = static_cast<int>(64 - 8 * bytes.size());
  if (code[0] == 'u') return cat(static_cast<std::uint64_t>(whole));
  if (code[0] == 'i') return cat(whole << unused >> unused);  // with its sign
  if (code == "f8") return compact(std::bit_cast<double>(whole), 9);
  if (code == "f4") return compact(std::bit_cast<float>(static_cast<std::uint32_t>(whole)), 9);
  return "";
}

void add_entries(const PickleNode& dict, Entries& out) {
  for (const auto& [key, value] : dict.entries) {
    if (key->is(Kind::kText)) out.emplace_back(key->text, value);
  }
}

// Named values of a dict, of a subclass of dict, or of an object. Of equal names the last one
// counts.
Entries named_values(const PickleNode& node) {
  Entries out;
  if (!node.is(Kind::kDict) && !node.is(Kind::kObject)) return out;
  add_entries(node, out);
  if (!node.state) return out;
  add_entries(*node.state, out);
  for (const PickleNode* part : node.state->items) add_entries(*part, out);  // (attributes, slots)
  if (const PickleNode* attributes = node.state->find("__dict__")) {
    add_entries(*attributes, out);  // pydantic
  }
  return out;
}

bool is_scalar(const PickleNode& node) {
  return node.is(Kind::kBool) || node.is(Kind::kInt) || node.is(Kind::kFloat) ||
         node.is(Kind::kText);
}

std::string text_of(const PickleNode& node) {
  return node.is(Kind::kText) ? node.text : pickle_text(node, kLongestText);
}

// Weights and the state of optimisers and generators say nothing about the model.
bool holds_state(const std::string& name, const PickleNode& node) {
  if (is_scalar(node)) return false;
  const auto holds_tensor = [](const auto& entry) { return is_tensor(*entry.second); };
  const auto tensors = std::count_if(node.entries.begin(), node.entries.end(), holds_tensor);
  if (2 * static_cast<std::size_t>(tensors) > node.entries.size()) {
    return true;  // arguments may hold a tensor, too
  }
  if (node.find("param_groups") || node.find("_step_count")) return true;
  for (const char* word : {"optim", "sched", "rng", "callback", "loops", "scaler"}) {
    if (name.find(word) != std::string::npos) return true;
  }
  return false;
}

void collect(const std::string& name, const PickleNode& wrapped, Arguments& out,
             std::size_t& visits, int depth) {
  if (out.size() >= kMost || ++visits > kMostVisits || depth > kDeepest || is_tensor(wrapped)) {
    return;
  }
  const PickleNode& node = unwrapped(wrapped);
  if (is_scalar(node) || node.is(Kind::kNone)) {
    out[name] = text_of(node);
    return;
  }
  if (const std::string number = numpy_number(node); !number.empty()) {
    out[name] = number;
    return;
  }
  const Entries entries = named_values(node);
  for (const auto& [key, value] : entries) {
    if (!starts_with(key, "_")) collect(cat(name, ".", key), *value, out, visits, depth + 1);
  }
  if (entries.empty() && !node.is(Kind::kPersistent)) out[name] = pickle_text(node, kLongestText);
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
