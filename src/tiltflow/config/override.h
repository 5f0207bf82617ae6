// Changes of a configuration from outside its file: --set KEY=VALUE and --unset KEY, and those that
// recipes make.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace tiltflow {

struct Override {
  std::string text;  // "key=value", the value in TOML grammar (a bare word counts as a string); the
                     // key alone for `unset`
  std::string origin = "--set";  // whose it is, for messages: an option, or the recipe that says so
  bool unset = false;            // the key returns to its default
  std::filesystem::path base;    // what its paths are relative to; empty: the working directory

  Override(const char* set)
      : text(set) {}  // NOLINT(google-explicit-constructor): a list of texts is a list of overrides
  Override(std::string set) : text(std::move(set)) {}  // NOLINT(google-explicit-constructor)
  Override(std::string set, std::string whose) : text(std::move(set)), origin(std::move(whose)) {}
};

// Those of the command line, the unset ones first.
std::vector<Override> command_line_overrides(const std::vector<std::string>& set,
                                             const std::vector<std::string>& unset = {});
// Texts of a recipe, named by `origin`, whose paths are relative to `base`.
std::vector<Override> overrides_from(const std::string& origin, const std::vector<std::string>& set,
                                     const std::filesystem::path& base = {});

// One step of a key: a name, or the index of a list.
struct KeyPart {
  std::string name;
  bool quoted = false;
  bool index() const;  // reward[0] or reward.0
};
// "reward[0].scale" or model.args."a.b" -> its parts. Throws kUsage, naming `where`.
std::vector<KeyPart> key_parts(const std::string& key, const std::string& where);
// Position of the '=' between key and value, outside quotes; npos when there is none.
std::size_t equals_of(const std::string& text);

// "reward[0].scale" -> "reward[].scale".
std::string without_indices(const std::string& key);

}  // namespace tiltflow
