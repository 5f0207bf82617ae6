// Pickles for people.
#include "tiltflow/base/strings.h"
#include "tiltflow/io/pickle.h"

namespace tiltflow {
namespace {

using Kind = PickleNode::Kind;

constexpr int kMaxDepth = 64;

void print(const PickleNode& node, std::string& out, std::size_t limit, int depth) {
  if (out.size() > limit) return;
  if (depth > kMaxDepth) {
    out += "...";
    return;
  }
  const auto sequence = [&](const auto& items, const char* open, const char* close) {
    out += open;
    for (std::size_t i = 0; i < items.size() && out.size() <= limit; ++i) {
      if (i) out += ", ";
      print(*items[i], out, limit, depth + 1);
    }
    out += close;
  };
  const auto dict = [&] {
    out += "{";
    for (std::size_t i = 0; i < node.entries.size() && out.size() <= limit; ++i) {
      if (i) out += ", ";
      print(*node.entries[i].first, out, limit, depth + 1);
      out += ": ";
      print(*node.entries[i].second, out, limit, depth + 1);
    }
    out += "}";
  };
  switch (node.kind) {
    case Kind::kNone:
      out += "None";
      return;
    case Kind::kBool:
      out += node.integer ? "True" : "False";
      return;
    case Kind::kInt:
      out += node.text.empty() ? std::to_string(node.integer) : node.text;
      return;
    case Kind::kFloat:
      out += compact(node.number, 9);
      return;
    case Kind::kText:
    case Kind::kBytes:
      out += node.is(Kind::kText) ? "'" : "b'";
      for (const char c : node.text.substr(0, limit)) {
        out += static_cast<unsigned char>(c) < 32 ? '?' : c;  // no control characters on a terminal
      }
      out += "'";
      return;
    case Kind::kList:
      sequence(node.items, "[", "]");
      return;
    case Kind::kTuple:
      sequence(node.items, "(", ")");
      return;
    case Kind::kDict:
      dict();
      return;
    case Kind::kGlobal:
      out += node.text;
      return;
    case Kind::kPersistent:
      sequence(node.items, "<", ">");
      return;
    case Kind::kObject:
      break;
  }
  out += node.text;
  sequence(node.items, "(", ")");
  if (!node.entries.empty()) dict();
  if (node.state) print(*node.state, out, limit, depth + 1);
}

}  // namespace

std::string pickle_text(const PickleNode& node, std::size_t limit) {
  std::string out;
  print(node, out, limit, 0);
  if (out.size() > limit) out = out.substr(0, limit) + "...";
  return out;
}

}  // namespace tiltflow
