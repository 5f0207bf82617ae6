#include "tiltflow/io/pickle.h"

#include <bit>
#include <cstring>
#include <unordered_map>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"

namespace tiltflow {
namespace {

using Kind = PickleNode::Kind;

constexpr std::size_t kMaxOpcodes = 200'000'000;
constexpr std::size_t kMaxNodes = 50'000'000;
constexpr std::size_t kMaxText = std::size_t{1} << 31;
constexpr std::size_t kMaxStack = 10'000'000;

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

class Machine {
 public:
  Machine(std::string_view bytes, const std::string& where) : bytes_(bytes), where_(where) {}

  PickleDocument run() {
    for (std::size_t count = 0; count < kMaxOpcodes; ++count) {
      if (step(static_cast<unsigned char>(take(1)[0]))) return std::move(document_);
      if (stack_.size() > kMaxStack) bad("keeps too many values on its stack");
    }
    bad("has too many opcodes");
  }

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

  PickleNode* make(Kind kind) {
    if (document_.nodes.size() >= kMaxNodes) bad("holds too many values");
    document_.nodes.emplace_back();
    document_.nodes.back().kind = kind;
    return &document_.nodes.back();
  }
  void push(PickleNode* node) { stack_.push_back(node); }
  void push_text(Kind kind, std::string text) {
    PickleNode* node = make(kind);
    node->text = std::move(text);
    push(node);
  }
  void push_integer(Kind kind, std::int64_t value) {
    PickleNode* node = make(kind);
    node->integer = value;
    push(node);
  }
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

  void push_sequence(Kind kind, const std::vector<PickleNode*>& items) {
    PickleNode* node = make(kind);
    node->items.assign(items.begin(), items.end());
    push(node);
  }
  void append(const std::vector<PickleNode*>& items) {
    PickleNode* list = top();
    if (!list->is(Kind::kList) && !list->is(Kind::kObject)) {
      bad("appends to something that is not a list");
    }
    list->items.insert(list->items.end(), items.begin(), items.end());
  }
  void set_items(const std::vector<PickleNode*>& pairs) {
    if (pairs.size() % 2) bad("sets a key without a value");
    PickleNode* dict = top();
    if (!dict->is(Kind::kDict) && !dict->is(Kind::kObject)) {
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

  // Two's complement, little-endian, of any length.
  void push_long(std::string_view raw) {
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
  PickleNode* reduced(const PickleNode* callable, const std::vector<const PickleNode*>& arguments) {
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
  void reduce() {
    const PickleNode* arguments = pop();
    const PickleNode* callable = pop();
    if (!arguments->is(Kind::kTuple)) bad("calls something with arguments that are not a tuple");
    push(reduced(callable, arguments->items));
  }
  void global(std::string module, const std::string& name) {
    if (module == "__builtin__") module = "builtins";
    push_text(Kind::kGlobal, cat(module, ".", name));
  }
  void persistent(PickleNode* id) {
    PickleNode* node = make(Kind::kPersistent);
    node->items = {id};
    push(node);
  }

  bool step(unsigned char opcode);

  std::string_view bytes_;
  const std::string& where_;
  std::size_t position_ = 0;
  std::size_t spent_ = 0;
  PickleDocument document_;
  std::vector<PickleNode*> stack_;
  std::vector<std::size_t> marks_;
  std::unordered_map<std::uint64_t, PickleNode*> memo_;
};

std::string unquoted(std::string_view text) {
  if (text.size() >= 2 && (text.front() == '\'' || text.front() == '"') &&
      text.back() == text.front()) {
    text = text.substr(1, text.size() - 2);
  }
  return std::string(text);
}

// One opcode; true after STOP.
bool Machine::step(unsigned char opcode) {
  switch (opcode) {
    case 0x80:
      if (const auto version = little(1); version > 5) bad(cat("uses protocol ", version));
      return false;  // PROTO
    case 0x95:
      little(8);
      return false;  // FRAME
    case '.':
      document_.root = pop();
      document_.consumed = position_;
      return true;
    case '(':
      marks_.push_back(stack_.size());
      return false;
    case '0':
      if (stack_.size() > floor()) {
        stack_.pop_back();
      } else {
        pop_to_mark();
      }
      return false;  // POP
    case '1':
      pop_to_mark();
      return false;
    case '2':
      push(top());
      return false;

    case 'N':
      push(make(Kind::kNone));
      return false;
    case 0x88:
      push_integer(Kind::kBool, 1);
      return false;
    case 0x89:
      push_integer(Kind::kBool, 0);
      return false;
    case 'J':
      push_integer(Kind::kInt, static_cast<std::int32_t>(little(4)));
      return false;
    case 'K':
      push_integer(Kind::kInt, static_cast<std::int64_t>(little(1)));
      return false;
    case 'M':
      push_integer(Kind::kInt, static_cast<std::int64_t>(little(2)));
      return false;
    case 0x8a:
      push_long(take(little(1)));
      return false;  // LONG1
    case 0x8b:
      push_long(take(little(4)));
      return false;  // LONG4
    case 'I':
    case 'L': {
      std::string text(line());
      if (opcode == 'I' && (text == "00" || text == "01")) {
        push_integer(Kind::kBool, text == "01");
        return false;
      }
      if (!text.empty() && text.back() == 'L') text.pop_back();
      char* end = nullptr;
      errno = 0;
      const long long value = std::strtoll(text.c_str(), &end, 10);
      if (text.empty() || *end) bad("has a malformed integer");
      push_integer(Kind::kInt, value);
      if (errno == ERANGE) stack_.back()->text = text;
      return false;
    }
    case 'G': {  // BINFLOAT, big-endian
      std::uint64_t value = 0;
      for (const char c : take(8)) value = value << 8 | static_cast<unsigned char>(c);
      push(make(Kind::kFloat));
      stack_.back()->number = std::bit_cast<double>(value);
      return false;
    }
    case 'F': {
      const std::string text(line());
      push(make(Kind::kFloat));
      stack_.back()->number = std::strtod(text.c_str(), nullptr);
      return false;
    }

    case 'X':
      push_text(Kind::kText, sized_text(4));
      return false;
    case 0x8c:
      push_text(Kind::kText, sized_text(1));
      return false;
    case 0x8d:
      push_text(Kind::kText, sized_text(8));
      return false;
    case 'V':
      push_text(Kind::kText, std::string(line()));
      return false;
    case 'T':
      push_text(Kind::kText, sized_text(4));
      return false;  // str of Python 2
    case 'U':
      push_text(Kind::kText, sized_text(1));
      return false;
    case 'S':
      push_text(Kind::kText, unquoted(line()));
      return false;
    case 'B':
      push_text(Kind::kBytes, sized_text(4));
      return false;
    case 'C':
      push_text(Kind::kBytes, sized_text(1));
      return false;
    case 0x8e:
    case 0x96:
      push_text(Kind::kBytes, sized_text(8));
      return false;  // BINBYTES8, BYTEARRAY8

    case ']':
      push(make(Kind::kList));
      return false;
    case '}':
      push(make(Kind::kDict));
      return false;
    case ')':
      push(make(Kind::kTuple));
      return false;
    case 0x8f:
      push_text(Kind::kObject, "builtins.set");
      return false;  // EMPTY_SET
    case 'l':
      push_sequence(Kind::kList, pop_to_mark());
      return false;
    case 't':
      push_sequence(Kind::kTuple, pop_to_mark());
      return false;
    case 'd': {
      const auto pairs = pop_to_mark();
      push(make(Kind::kDict));
      set_items(pairs);
      return false;
    }
    case 0x91: {  // FROZENSET
      const auto items = pop_to_mark();
      push_text(Kind::kObject, "builtins.frozenset");
      append(items);
      return false;
    }
    case 0x85:
    case 0x86:
    case 0x87: {  // TUPLE1..3
      std::vector<PickleNode*> items(opcode - 0x84u);
      for (std::size_t i = items.size(); i-- > 0;) items[i] = pop();
      push_sequence(Kind::kTuple, items);
      return false;
    }
    case 'a': {
      PickleNode* item = pop();
      append({item});
      return false;
    }
    case 'e':
    case 0x90:
      append(pop_to_mark());
      return false;  // APPENDS, ADDITEMS
    case 's': {
      PickleNode* value = pop();
      PickleNode* key = pop();
      set_items({key, value});
      return false;
    }
    case 'u':
      set_items(pop_to_mark());
      return false;

    case 'g':
      recall(number_line());
      return false;
    case 'h':
      recall(little(1));
      return false;
    case 'j':
      recall(little(4));
      return false;
    case 'p':
      memoize(number_line());
      return false;
    case 'q':
      memoize(little(1));
      return false;
    case 'r':
      memoize(little(4));
      return false;
    case 0x94:
      memoize(memo_.size());
      return false;

    case 'c': {
      const std::string module(line()), name(line());
      global(module, name);
      return false;
    }
    case 0x93: {
      const PickleNode* name = pop();
      const PickleNode* module = pop();
      if (!name->is(Kind::kText) || !module->is(Kind::kText)) {
        bad("names a global by something that is not text");
      }
      global(module->text, name->text);
      return false;
    }
    case 'R':
      reduce();
      return false;
    case 0x81:
      reduce();
      return false;  // NEWOBJ: cls.__new__(cls, *args)
    case 0x92: {     // NEWOBJ_EX
      pop();
      reduce();
      return false;
    }
    case 'i': {  // INST
      const std::string module(line()), name(line());
      const auto arguments = pop_to_mark();
      global(module, name);
      const PickleNode* callable = pop();
      push(reduced(callable, {arguments.begin(), arguments.end()}));
      return false;
    }
    case 'o': {  // OBJ
      const auto values = pop_to_mark();
      if (values.empty()) bad("makes an object of no class");
      push(reduced(values.front(), {values.begin() + 1, values.end()}));
      return false;
    }
    case 'b': {
      const PickleNode* state = pop();
      top()->state = state;
      return false;
    }
    case 'P': {
      PickleNode* id = make(Kind::kText);
      id->text = std::string(line());
      persistent(id);
      return false;
    }
    case 'Q':
      persistent(pop());
      return false;
    default:
      break;
  }
  bad(cat("has the unknown opcode ", static_cast<int>(opcode)));
}

}  // namespace

const PickleNode* PickleNode::find(std::string_view key) const {
  const PickleNode* found = nullptr;  // the last one wins, as in Python
  if (kind == Kind::kDict) {
    for (const auto& [k, v] : entries) {
      if (k->kind == Kind::kText && k->text == key) found = v;
    }
  }
  return found;
}

PickleDocument parse_pickle(std::string_view bytes, const std::string& where) {
  return Machine(bytes, where).run();
}

}  // namespace tiltflow
