// Pickles for people.
#include "tiltflow/base/strings.h"
#include "tiltflow/io/pickle.h"

namespace tiltflow {
namespace {

using Kind = PickleNode::Kind;

constexpr int kMaxDepth = 64;

// Prints until the text is longer than `limit`.
struct NodePrinter {
  std::string out;
  std::size_t limit;

  void sequence(const std::vector<const PickleNode*>& items, const char* open, const char* close,
                int depth) {
    out += open;
    for (std::size_t i = 0; i < items.size() && out.size() <= limit; ++i) {
      if (i) out += ", ";
      node(*items[i], depth + 1);
    }
    out += close;
  }

  void dict(const PickleNode& holder, int depth) {
    const auto& entries = holder.entries;
    out += "{";
    for (std::size_t i = 0; i < entries.size() && out.size() <= limit; ++i) {
      if (i) out += ", ";
      node(*entries[i].first, depth + 1);
      out += ": ";
      node(*entries[i].second, depth + 1);
    }
    out += "}";
  }

  void quoted(const PickleNode& node) {
    out += node.is(Kind::kText) ? "'" : "b'";
    for (const char c : node.text.substr(0, limit)) {
      out += static_cast<unsigned char>(c) < 32 ? '?' : c;  // no control characters on a terminal
    }
    out += "'";
  }

  void object(const PickleNode& object, int depth) {
    out += object.text;
    sequence(object.items, "(", ")", depth);
    if (!object.entries.empty()) dict(object, depth);
    if (object.state) node(*object.state, depth + 1);
  }

  void node(const PickleNode& node, int depth) {
    if (out.size() > limit) return;
    if (depth > kMaxDepth) {
      out += "...";
      return;
    }
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
        return quoted(node);
      case Kind::kList:
        return sequence(node.items, "[", "]", depth);
      case Kind::kTuple:
        return sequence(node.items, "(", ")", depth);
      case Kind::kDict:
        return dict(node, depth);
      case Kind::kGlobal:
        out += node.text;
        return;
      case Kind::kPersistent:
        return sequence(node.items, "<", ">", depth);
      case Kind::kObject:
        return object(node, depth);
    }
  }
};

}  // namespace

std::string pickle_text(const PickleNode& node, std::size_t limit) {
  NodePrinter printer{"", limit};
  printer.node(node, 0);
  if (printer.out.size() > limit) return printer.out.substr(0, limit) + "...";
  return printer.out;
}

}  // namespace tiltflow
