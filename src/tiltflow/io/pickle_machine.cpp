#include "tiltflow/io/pickle_machine.h"

#include <algorithm>

namespace tiltflow {
namespace {

using Kind = PickleNode::Kind;

// The bytes that Python's str.encode("latin1") makes of a text in UTF-8.
std::string latin1(const std::string& text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto lead = static_cast<unsigned char>(text[i]);
    const bool two = (lead == 0xc2 || lead == 0xc3) && i + 1 < text.size();
    out += two ? static_cast<char>((lead & 3) << 6 | (text[++i] & 0x3f)) : text[i];
  }
  return out;
}

}  // namespace

PickleDocument PickleMachine::run() {
  for (std::size_t count = 0; count < kMaxOpcodes; ++count) {
    if (step(static_cast<unsigned char>(take(1)[0]))) return std::move(document_);
    if (stack_.size() > kMaxStack) bad("keeps too many values on its stack");
  }
  bad("has too many opcodes");
}

// Two's complement, little-endian, of any length.
void PickleMachine::push_long(std::string_view raw) {
  PickleNode* node = make(Kind::kInt);
  if (raw.size() <= 8) {
    std::uint64_t value = 0;
    for (std::size_t i = 0; i < raw.size(); ++i) {
      value |= static_cast<std::uint64_t>(static_cast<unsigned char>(raw[i])) << (8 * i);
    }
    if (!raw.empty() && raw.size() < 8 && (static_cast<unsigned char>(raw.back()) & 0x80)) {
      value |= ~std::uint64_t{0} << (8 * raw.size());
    }
    node->integer = static_cast<std::int64_t>(value);
  } else {
    static const char* const kDigits = "0123456789abcdef";
    node->text = "0x";
    for (std::size_t i = std::min<std::size_t>(raw.size(), 64); i-- > 0;) {
      node->text += {kDigits[static_cast<unsigned char>(raw[i]) >> 4], kDigits[raw[i] & 15]};
    }
  }
  push(node);
}

// What a call would make; nothing is called. Dicts and sequences become plain nodes, the rest
// stays an object.
PickleNode* PickleMachine::reduced(const PickleNode* callable,
                                   const std::vector<const PickleNode*>& arguments) {
  const std::string name = callable->is(Kind::kGlobal) ? callable->text : "";
  spend(sizeof(PickleNode) + name.size() + arguments.size() * sizeof(void*));
  if (name == "collections.OrderedDict" || name == "builtins.dict" ||
      name == "collections.defaultdict") {
    PickleNode* dict = make(Kind::kDict);
    if (name != "collections.defaultdict" && !arguments.empty()) {
      spend(arguments[0]->items.size() * 2 * sizeof(void*));
      for (const PickleNode* pair : arguments[0]->items) {
        if (pair->items.size() == 2) dict->entries.emplace_back(pair->items[0], pair->items[1]);
      }
    }
    return dict;
  }
  if ((name == "torch.Size" || name == "builtins.list" || name == "builtins.tuple") &&
      arguments.size() == 1) {
    spend(arguments[0]->items.size() * sizeof(void*));
    PickleNode* sequence = make(name == "builtins.list" ? Kind::kList : Kind::kTuple);
    sequence->items = arguments[0]->items;
    return sequence;
  }
  if (name == "_codecs.encode" && !arguments.empty() && arguments[0]->is(Kind::kText)) {
    spend(arguments[0]->text.size());
    PickleNode* bytes = make(Kind::kBytes);
    bytes->text = latin1(arguments[0]->text);
    return bytes;
  }
  PickleNode* object = make(Kind::kObject);
  object->text = name.empty() ? "object" : name;
  object->items = arguments;
  return object;
}

}  // namespace tiltflow
