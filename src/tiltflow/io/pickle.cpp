#include "tiltflow/io/pickle.h"

#include <bit>
#include <cerrno>
#include <cstdlib>

#include "tiltflow/base/strings.h"
#include "tiltflow/io/pickle_machine.h"

namespace tiltflow {
namespace {

using Kind = PickleNode::Kind;

std::string unquoted(std::string_view text) {
  if (text.size() >= 2 && (text.front() == '\'' || text.front() == '"') &&
      text.back() == text.front()) {
    text = text.substr(1, text.size() - 2);
  }
  return std::string(text);
}

// Texts and bytes whose length comes first, in so many bytes.
struct SizedText {
  unsigned char opcode;
  Kind kind;
  std::size_t width;
};
constexpr SizedText kSizedTexts[] = {
    {'X', Kind::kText, 4},   {0x8c, Kind::kText, 1}, {0x8d, Kind::kText, 8},
    {'T', Kind::kText, 4},   {'U', Kind::kText, 1},                            // str of Python 2
    {'B', Kind::kBytes, 4},  {'C', Kind::kBytes, 1}, {0x8e, Kind::kBytes, 8},  // BINBYTES8
    {0x96, Kind::kBytes, 8},                                                   // BYTEARRAY8
};

}  // namespace

// One opcode; true after STOP.
bool PickleMachine::step(unsigned char opcode) {
  if (opcode == '.') {
    document_.root = pop();
    document_.consumed = position_;
    return true;
  }
  const bool known = memo_opcode(opcode) || text_opcode(opcode) || scalar_opcode(opcode) ||
                     container_opcode(opcode) || stack_opcode(opcode) || call_opcode(opcode);
  if (!known) bad(cat("has the unknown opcode ", static_cast<int>(opcode)));
  return false;
}

// Frames, marks and the stack itself.
bool PickleMachine::stack_opcode(unsigned char opcode) {
  switch (opcode) {
    case 0x80:  // PROTO
      if (const auto version = little(1); version > 5) bad(cat("uses protocol ", version));
      return true;
    case 0x95:  // FRAME
      little(8);
      return true;
    case '(':
      marks_.push_back(stack_.size());
      return true;
    case '0':  // POP
      if (stack_.size() > floor()) {
        stack_.pop_back();
      } else {
        pop_to_mark();
      }
      return true;
    case '1':
      pop_to_mark();
      return true;
    case '2':
      push(top());
      return true;
    default:
      return false;
  }
}

// None, truth values and numbers.
bool PickleMachine::scalar_opcode(unsigned char opcode) {
  switch (opcode) {
    case 'N':
      push(make(Kind::kNone));
      return true;
    case 0x88:
    case 0x89:
      push_integer(Kind::kBool, opcode == 0x88);
      return true;
    case 'J':
      push_integer(Kind::kInt, static_cast<std::int32_t>(little(4)));
      return true;
    case 'K':
      push_integer(Kind::kInt, static_cast<std::int64_t>(little(1)));
      return true;
    case 'M':
      push_integer(Kind::kInt, static_cast<std::int64_t>(little(2)));
      return true;
    case 0x8a:  // LONG1
      push_long(take(little(1)));
      return true;
    case 0x8b:  // LONG4
      push_long(take(little(4)));
      return true;
    case 'I':
    case 'L':
      push_written_integer(opcode == 'I');
      return true;
    case 'G': {  // BINFLOAT, big-endian
      std::uint64_t value = 0;
      for (const char c : take(8)) value = value << 8 | static_cast<unsigned char>(c);
      push_float(std::bit_cast<double>(value));
      return true;
    }
    case 'F':
      push_float(std::strtod(std::string(line()).c_str(), nullptr));
      return true;
    default:
      return false;
  }
}

// An integer in digits; protocol 0 writes truth values as 00 and 01.
void PickleMachine::push_written_integer(bool or_truth) {
  std::string text(line());
  if (or_truth && (text == "00" || text == "01")) {
    push_integer(Kind::kBool, text == "01");
    return;
  }
  if (!text.empty() && text.back() == 'L') text.pop_back();
  char* end = nullptr;
  errno = 0;
  const long long value = std::strtoll(text.c_str(), &end, 10);
  if (text.empty() || *end) bad("has a malformed integer");
  push_integer(Kind::kInt, value);
  if (errno == ERANGE) stack_.back()->text = text;
}

bool PickleMachine::text_opcode(unsigned char opcode) {
  for (const SizedText& row : kSizedTexts) {
    if (row.opcode == opcode) {
      push_text(row.kind, sized_text(row.width));
      return true;
    }
  }
  if (opcode != 'V' && opcode != 'S') return false;
  const std::string_view written = line();
  push_text(Kind::kText, opcode == 'S' ? unquoted(written) : std::string(written));
  return true;
}

// Lists, dicts, tuples and sets.
bool PickleMachine::container_opcode(unsigned char opcode) {
  switch (opcode) {
    case ']':
      push(make(Kind::kList));
      return true;
    case '}':
      push(make(Kind::kDict));
      return true;
    case ')':
      push(make(Kind::kTuple));
      return true;
    case 0x8f:  // EMPTY_SET
      push_text(Kind::kObject, "builtins.set");
      return true;
    case 'l':
      push_sequence(Kind::kList, pop_to_mark());
      return true;
    case 't':
      push_sequence(Kind::kTuple, pop_to_mark());
      return true;
    case 0x85:
    case 0x86:
    case 0x87:  // TUPLE1..3
      push_tuple(opcode - 0x84u);
      return true;
    case 'd': {
      const auto pairs = pop_to_mark();
      push(make(Kind::kDict));
      set_items(pairs);
      return true;
    }
    case 0x91: {  // FROZENSET
      const auto items = pop_to_mark();
      push_text(Kind::kObject, "builtins.frozenset");
      append(items);
      return true;
    }
    default:
      return filling_opcode(opcode);
  }
}

// What adds values to a container on the stack.
bool PickleMachine::filling_opcode(unsigned char opcode) {
  switch (opcode) {
    case 'a': {
      PickleNode* item = pop();
      append({item});
      return true;
    }
    case 'e':
    case 0x90:  // APPENDS, ADDITEMS
      append(pop_to_mark());
      return true;
    case 's': {
      PickleNode* value = pop();
      PickleNode* key = pop();
      set_items({key, value});
      return true;
    }
    case 'u':
      set_items(pop_to_mark());
      return true;
    default:
      return false;
  }
}

bool PickleMachine::memo_opcode(unsigned char opcode) {
  switch (opcode) {
    case 'g':
      recall(number_line());
      return true;
    case 'h':
      recall(little(1));
      return true;
    case 'j':
      recall(little(4));
      return true;
    case 'p':
      memoize(number_line());
      return true;
    case 'q':
      memoize(little(1));
      return true;
    case 'r':
      memoize(little(4));
      return true;
    case 0x94:
      memoize(memo_.size());
      return true;
    default:
      return false;
  }
}

// Names of classes and functions, calls, states and references outside the pickle.
bool PickleMachine::call_opcode(unsigned char opcode) {
  switch (opcode) {
    case 'c':
      push_written_global();
      return true;
    case 0x93:  // STACK_GLOBAL
      push_popped_global();
      return true;
    case 'R':
    case 0x81:  // NEWOBJ: cls.__new__(cls, *args)
      reduce();
      return true;
    case 0x92:  // NEWOBJ_EX
      pop();
      reduce();
      return true;
    case 'i': {  // INST
      push_written_global();
      const PickleNode* callable = pop();
      const auto arguments = pop_to_mark();
      push(reduced(callable, {arguments.begin(), arguments.end()}));
      return true;
    }
    case 'o': {  // OBJ
      const auto values = pop_to_mark();
      if (values.empty()) bad("makes an object of no class");
      push(reduced(values.front(), {values.begin() + 1, values.end()}));
      return true;
    }
    case 'b': {
      const PickleNode* state = pop();
      top()->state = state;
      return true;
    }
    case 'P': {
      PickleNode* id = make(Kind::kText);
      id->text = std::string(line());
      persistent(id);
      return true;
    }
    case 'Q':
      persistent(pop());
      return true;
    default:
      return false;
  }
}

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
  return PickleMachine(bytes, where).run();
}

}  // namespace tiltflow
