// Typed configuration. Every record has one function bind(Fields&, Record&) that names its keys
// once; the same walk reads a TOML document, checks types and ranges, and produces the resolved
// values with their source.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "tiltflow/base/inputs.h"
#include "tiltflow/config/override.h"

namespace tiltflow {

// What a value must satisfy: returns "" or what is wrong ("must be positive").
template <class T>
using Check = std::function<std::string(const T&)>;

Check<double> positive();
Check<double> at_least(double low);
Check<double> between(double low, double high);  // inclusive
// Counts of samples, steps and the like also have an upper end: products of two stay whole numbers,
// and random streams number their steps with 32 bits, of which the highest are reserved.
inline constexpr std::int64_t kLargestCount = 0x7fffffff;
Check<std::int64_t> at_least_integer(std::int64_t low, std::int64_t high = kLargestCount);
// Seeds: any whole number that is not negative.
Check<std::int64_t> any_seed();
Check<std::string> one_of(std::vector<std::string> choices);

struct ResolvedValue {
  std::string key;     // "train.learning_rate", "reward[0].scale"
  std::string value;   // TOML text
  std::string source;  // "default", "FILE:12", the override's origin
  std::string doc;
};

class Fields {
 public:
  // `file` may be empty (defaults and overrides only). Overrides are applied in their order. Throws
  // kUsage for overrides that are none, kConfig on syntax errors (with line) and kBadFile when the
  // file is missing.
  explicit Fields(const std::filesystem::path& file, const std::vector<Override>& overrides = {});
  ~Fields();
  Fields(const Fields&) = delete;
  Fields& operator=(const Fields&) = delete;

  bool has(const std::string& key)
      const;  // the document or an override gives this key of the current section

  // The next key, `now`, was called `before` in earlier versions: a document or an override may
  // still say so, and a warning names the new one. Saying both in one document is a problem.
  void renamed(const std::string& before, const std::string& now);

  void value(const std::string& key, double& target, const std::string& doc,
             const Check<double>& check = {});
  void value(const std::string& key, std::int64_t& target, const std::string& doc,
             const Check<std::int64_t>& check = {});
  void value(const std::string& key, bool& target, const std::string& doc);
  void value(const std::string& key, std::string& target, const std::string& doc,
             const Check<std::string>& check = {});
  void value(const std::string& key, std::vector<std::int64_t>& target, const std::string& doc);
  void value(const std::string& key, std::vector<double>& target, const std::string& doc);
  void value(const std::string& key, std::vector<std::string>& target, const std::string& doc);
  // Files or folders that are read: relative to the configuration's folder, on the command line to
  // the working directory; targets become absolute. Empty ones stay empty, and so do `words`, which
  // name no file.
  void path(const std::string& key, std::string& target, PathKind kind, const std::string& doc,
            const std::vector<std::string>& words = {});
  void path(const std::string& key, std::vector<std::string>& target, PathKind kind,
            const std::string& doc);
  // A free table of scalars, kept as text (model arguments by their official names).
  void table(const std::string& key, std::map<std::string, std::string>& target,
             const std::string& doc);

  template <class Record>
  void section(const std::string& key, Record& record) {
    enter(key);
    bind(*this, record);
    leave();
  }
  // An array of tables, [[key]]; keeps the records given as default when the document has none.
  template <class Record>
  void list(const std::string& key, std::vector<Record>& records) {
    if (const std::size_t count = list_size(key); count > 0) records.assign(count, Record{});
    for (std::size_t i = 0; i < records.size(); ++i) {
      enter_item(key, i);
      bind(*this, records[i]);
      leave();
    }
  }
  // Adds a problem found by the caller to the list, at the line of `key` in the current section.
  void problem(const std::string& key, const std::string& message);

  // Throws kConfig with every problem found: wrong types and ranges, unknown keys with a
  // suggestion; all with lines.
  void finish();
  const std::vector<ResolvedValue>& resolved() const;
  const std::vector<InputPath>& inputs() const;  // the paths that are not empty
  std::string resolved_toml() const;             // a document that reproduces this configuration

 private:
  void enter(const std::string& key);
  void enter_item(const std::string& key, std::size_t index);
  void leave();
  std::size_t list_size(const std::string& key);
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// What a configuration says beside its record.
struct ResolvedConfig {
  std::string toml;               // a document that reproduces it, from any directory
  std::vector<InputPath> inputs;  // the files it names
};

// Reads `file` with overrides; complete in one call. `resolved` (if given) receives the rest.
template <class Record>
Record load_config(const std::filesystem::path& file, const std::vector<Override>& overrides,
                   ResolvedConfig* resolved) {
  Fields fields(file, overrides);
  Record record{};
  bind(fields, record);
  fields.finish();
  if (resolved) *resolved = {fields.resolved_toml(), fields.inputs()};
  return record;
}
// The document of a stored configuration, with the keys that it lacks at their defaults.
template <class Record>
std::string reread_config(const std::filesystem::path& file) {
  ResolvedConfig resolved;
  load_config<Record>(file, {}, &resolved);
  return resolved.toml;
}
template <class Record>
Record load_config(const std::filesystem::path& file, const std::vector<Override>& overrides,
                   std::string* resolved_toml = nullptr) {
  ResolvedConfig resolved;
  Record record = load_config<Record>(file, overrides, &resolved);
  if (resolved_toml) *resolved_toml = std::move(resolved.toml);
  return record;
}

}  // namespace tiltflow
