// The machine that a pickle's opcodes drive: a stack, marks and a memo of plain nodes. Nothing is
// imported or called. Untrusted input: what it may make stays in proportion to the file.
#pragma once

#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/pickle.h"

namespace tiltflow {

class PickleMachine {
 public:
  PickleMachine(std::string_view bytes, const std::string& where) : bytes_(bytes), where_(where) {}

  PickleDocument run();

 private:
  [[noreturn]] void bad(const std::string& why) const {
    fail(ErrorKind::kBadFile, cat(where_, ": the pickle ", why, " (byte ", position_, ")"));
  }

  std::string_view take(std::size_t n) {
    if (n > bytes_.size() - position_) bad("ends too early");
    const std::string_view out = bytes_.substr(position_, n);
    position_ += n;
    return out;
  }
  std::uint64_t little(std::size_t width) {
    std::uint64_t value = 0;
    const std::string_view raw = take(width);
    for (std::size_t i = 0; i < width; ++i) {
      value |= static_cast<std::uint64_t>(static_cast<unsigned char>(raw[i])) << (8 * i);
    }
    return value;
  }
  std::string_view line() {
    const std::size_t end = bytes_.find('\n', position_);
    if (end == std::string_view::npos) bad("ends inside a line");
    const std::string_view out = bytes_.substr(position_, end - position_);
    position_ = end + 1;
    return out;
  }
  std::string sized_text(std::size_t width) {
    const std::uint64_t n = little(width);
    if (n > kMaxText) bad("holds a text that is too long");
    return std::string(take(static_cast<std::size_t>(n)));
  }

  PickleNode* make(PickleNode::Kind kind) {
    if (document_.nodes.size() >= kMaxNodes) bad("holds too many values");
    document_.nodes.emplace_back();
    document_.nodes.back().kind = kind;
    return &document_.nodes.back();
  }
  void push(PickleNode* node) { stack_.push_back(node); }
  void push_text(PickleNode::Kind kind, std::string text) {
    PickleNode* node = make(kind);
    node->text = std::move(text);
    push(node);
  }
  void push_integer(PickleNode::Kind kind, std::int64_t value) {
    PickleNode* node = make(kind);
    node->integer = value;
    push(node);
  }
  void push_float(double value) {
    PickleNode* node = make(PickleNode::Kind::kFloat);
    node->number = value;
    push(node);
  }
  void push_written_integer(bool or_truth);
  PickleNode* pop() {
    if (stack_.size() <= floor()) bad("pops from an empty stack");
    PickleNode* node = stack_.back();
    stack_.pop_back();
    return node;
  }
  PickleNode* top() {
    if (stack_.size() <= floor()) bad("reads from an empty stack");
    return stack_.back();
  }
  std::size_t floor() const { return marks_.empty() ? 0 : marks_.back(); }
  std::vector<PickleNode*> pop_to_mark() {
    if (marks_.empty()) bad("lacks a mark");
    const std::size_t mark = marks_.back();
    std::vector<PickleNode*> out(stack_.begin() + static_cast<std::ptrdiff_t>(mark), stack_.end());
    stack_.resize(mark);
    marks_.pop_back();
    return out;
  }

  // Copies made while reducing must stay in proportion to the file: a few bytes may not become
  // gigabytes.
  void spend(std::size_t n) {
    spent_ += n;
    if (spent_ > 16 * bytes_.size() + (std::size_t{64} << 20)) bad("blows up when it is unpacked");
  }

  void push_sequence(PickleNode::Kind kind, const std::vector<PickleNode*>& items) {
    PickleNode* node = make(kind);
    node->items.assign(items.begin(), items.end());
    push(node);
  }
  void push_tuple(std::size_t size) {
    std::vector<PickleNode*> items(size);
    for (std::size_t i = size; i-- > 0;) items[i] = pop();
    push_sequence(PickleNode::Kind::kTuple, items);
  }
  void append(const std::vector<PickleNode*>& items) {
    PickleNode* list = top();
    if (!list->is(PickleNode::Kind::kList) && !list->is(PickleNode::Kind::kObject)) {
      bad("appends to something that is not a list");
    }
    list->items.insert(list->items.end(), items.begin(), items.end());
  }
  void set_items(const std::vector<PickleNode*>& pairs) {
    if (pairs.size() % 2) bad("sets a key without a value");
    PickleNode* dict = top();
    if (!dict->is(PickleNode::Kind::kDict) && !dict->is(PickleNode::Kind::kObject)) {
      bad("sets an item of something that is not a dict");
    }
    for (std::size_t i = 0; i + 1 < pairs.size(); i += 2) {
      dict->entries.emplace_back(pairs[i], pairs[i + 1]);
    }
  }
  void memoize(std::uint64_t index) {
    if (index > kMaxNodes) bad("uses a memo index that is too large");
    memo_[index] = top();
  }
  void recall(std::uint64_t index) {
    const auto found = memo_.find(index);
    if (found == memo_.end()) bad("refers to an unknown memo entry");
    push(found->second);
  }
  std::uint64_t number_line() {
    const std::string text(line());
    char* end = nullptr;
    const unsigned long long value = std::strtoull(text.c_str(), &end, 10);
    if (text.empty() || *end) bad("has a malformed number");
    return value;
  }

  // An integer of any length: two's complement, little-endian.
  void push_long(std::string_view raw);
  // What a call would make; nothing is called. Dicts and sequences become plain nodes, the rest
  // stays an object.
  PickleNode* reduced(const PickleNode* callable, const std::vector<const PickleNode*>& arguments);
  void reduce() {
    const PickleNode* arguments = pop();
    const PickleNode* callable = pop();
    if (!arguments->is(PickleNode::Kind::kTuple))
      bad("calls something with arguments that are not a tuple");
    push(reduced(callable, arguments->items));
  }
  void global(std::string module, const std::string& name) {
    if (module == "__builtin__") module = "builtins";
    push_text(PickleNode::Kind::kGlobal, cat(module, ".", name));
  }
  void push_written_global() {
    const std::string module(line());
    const std::string name(line());
    global(module, name);
  }
  void push_popped_global() {
    const PickleNode* name = pop();
    const PickleNode* module = pop();
    if (!name->is(PickleNode::Kind::kText) || !module->is(PickleNode::Kind::kText)) {
      bad("names a global by something that is not text");
    }
    global(module->text, name->text);
  }
  void persistent(PickleNode* id) {
    PickleNode* node = make(PickleNode::Kind::kPersistent);
    node->items = {id};
    push(node);
  }

  bool step(unsigned char opcode);
  // Each knows the opcodes of one kind: false when `opcode` is none of them.
  bool stack_opcode(unsigned char opcode);
  bool scalar_opcode(unsigned char opcode);
  bool text_opcode(unsigned char opcode);
  bool container_opcode(unsigned char opcode);
  bool filling_opcode(unsigned char opcode);
  bool memo_opcode(unsigned char opcode);
  bool call_opcode(unsigned char opcode);

  static constexpr std::size_t kMaxOpcodes = 200'000'000;
  static constexpr std::size_t kMaxNodes = 50'000'000;
  static constexpr std::size_t kMaxText = std::size_t{1} << 31;
  static constexpr std::size_t kMaxStack = 10'000'000;

  std::string_view bytes_;
  const std::string& where_;
  std::size_t position_ = 0;
  std::size_t spent_ = 0;
  PickleDocument document_;
  std::vector<PickleNode*> stack_;
  std::vector<std::size_t> marks_;
  std::unordered_map<std::uint64_t, PickleNode*> memo_;
};

}  // namespace tiltflow
