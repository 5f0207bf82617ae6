// Python pickles as inert data. The machine understands the opcodes of protocols 0-5 and builds a
// tree; it never imports, calls or executes anything: what it does not know stays an object node
// with a name that can be printed, not used. Streams are untrusted: opcodes, memo, nodes, text and
// depth are bounded.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace tiltflow {

struct PickleNode {
  enum class Kind {
    kNone,
    kBool,
    kInt,
    kFloat,
    kText,
    kBytes,
    kList,
    kTuple,
    kDict,
    kGlobal,
    kObject,
    kPersistent
  };
  Kind kind = Kind::kNone;
  std::int64_t integer = 0;  // kBool, kInt
  double number = 0;         // kFloat
  std::string
      text;  // kText, kBytes; kGlobal, kObject: "module.name"; kInt beyond 64 bits: decimal or hex
  std::vector<const PickleNode*>
      items;  // kList, kTuple; kObject: arguments; kPersistent: the id alone
  std::vector<std::pair<const PickleNode*, const PickleNode*>> entries;  // kDict, in order
  const PickleNode* state = nullptr;  // what BUILD gave a dict or an object

  bool is(Kind k) const { return kind == k; }
  // Value of a text key; null when absent or not a dict.
  const PickleNode* find(std::string_view key) const;
};

// Owns the nodes; nodes may refer to each other in cycles, so walks must bound their depth.
struct PickleDocument {
  std::deque<PickleNode> nodes;
  const PickleNode* root = nullptr;
  std::size_t consumed = 0;  // bytes up to and including STOP
};

// Parses one pickle at the start of `bytes`; `where` names the source in errors. Throws kBadFile.
PickleDocument parse_pickle(std::string_view bytes, const std::string& where);

// One line, Python-like, cut at `limit` characters: {'lr': 0.1, 'args': argparse.Namespace(...)}.
std::string pickle_text(const PickleNode& node, std::size_t limit = 200);

}  // namespace tiltflow
