#include "tiltflow/config/override.h"

#include <algorithm>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"

namespace tiltflow {

std::vector<Override> command_line_overrides(const std::vector<std::string>& set,
                                             const std::vector<std::string>& unset) {
  std::vector<Override> out;
  for (const std::string& key : unset) {
    Override removal(key, "--unset");
    removal.unset = true;
    out.push_back(std::move(removal));
  }
  out.insert(out.end(), set.begin(), set.end());
  return out;
}

std::vector<Override> overrides_from(const std::string& origin, const std::vector<std::string>& set,
                                     const std::filesystem::path& base) {
  std::vector<Override> out;
  for (const std::string& text : set) {
    out.emplace_back(text, origin);
    out.back().base = base;
  }
  return out;
}

bool KeyPart::index() const {
  const auto digit = [](char c) { return c >= '0' && c <= '9'; };
  return !quoted && !name.empty() && name.size() < 6 &&
         std::all_of(name.begin(), name.end(), digit);
}

std::size_t equals_of(const std::string& text) {
  char quote = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (quote) {
      if (c == quote) quote = 0;
    } else if (c == '"' || c == '\'') {
      quote = c;
    } else if (c == '=') {
      return i;
    }
  }
  return std::string::npos;
}

namespace {

// Reads one part from `at` on, which moves behind it.
KeyPart read_part(const std::string& key, std::size_t& at, const std::string& where) {
  const auto refuse = [&] {
    fail(ErrorKind::kUsage, cat(where, ": '", key, "' is no key"),
         "keys look like train.steps, reward[0].scale or model.args.\"a name\"");
  };
  KeyPart part;
  if (key[at] == '"' || key[at] == '\'') {
    const std::size_t end = key.find(key[at], at + 1);
    if (end == std::string::npos) refuse();
    part.name = key.substr(at + 1, end - at - 1);
    part.quoted = true;
    at = end + 1;
  } else if (key[at] == '[') {
    const std::size_t end = key.find(']', at);
    if (end == std::string::npos) refuse();
    part.name = key.substr(at + 1, end - at - 1);
    if (!part.index()) refuse();
    at = end + 1;
  } else {
    const std::size_t end = std::min(key.find_first_of(".[\"'", at), key.size());
    part.name = key.substr(at, end - at);
    at = end;
  }
  if (part.name.empty()) refuse();
  return part;
}

std::string trimmed(const std::string& text) {
  const std::size_t begin = text.find_first_not_of(" \t");
  return begin == std::string::npos ? ""
                                    : text.substr(begin, text.find_last_not_of(" \t") - begin + 1);
}

}  // namespace

std::vector<KeyPart> key_parts(const std::string& text, const std::string& where) {
  const std::string key = trimmed(text);
  std::vector<KeyPart> out;
  std::size_t at = 0;
  while (at < key.size()) {
    out.push_back(read_part(key, at, where));
    const bool dot = at < key.size() && key[at] == '.';
    const bool joined = at == key.size() || dot || key[at] == '[';
    if (!joined || (dot && at + 1 == key.size())) {
      fail(ErrorKind::kUsage, cat(where, ": '", key, "' is no key"),
           "keys look like train.steps, reward[0].scale or model.args.\"a name\"");
    }
    if (dot) ++at;
  }
  if (out.empty()) {
    fail(ErrorKind::kUsage, cat(where, ": the key is missing"),
         "keys look like train.steps or reward[0].scale");
  }
  return out;
}

std::string without_indices(const std::string& key) {
  std::string out;
  bool inside = false;
  for (const char c : key) {
    if (c == ']') inside = false;
    if (!inside) out += c;
    if (c == '[') inside = true;
  }
  return out;
}

}  // namespace tiltflow
