#include "tiltflow/config/differences.h"

#include <toml++/toml.h>
#include <map>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/config/toml_text.h"

namespace tiltflow {
namespace {

void flatten(const toml::node& node, const std::string& name,
             std::map<std::string, std::string>& out) {
  if (const toml::table* table = node.as_table()) {
    for (const auto& [key, item] : *table) {
      flatten(item, name.empty() ? std::string(key.str()) : cat(name, ".", key.str()), out);
    }
    return;
  }
  const toml::array* array = node.as_array();
  if (array && !array->empty() && array->get(0)->is_table()) {
    std::size_t index = 0;
    for (const toml::node& item : *array) flatten(item, cat(name, "[", index++, "]"), out);
    return;
  }
  out[name] = toml_text(node);
}

// Stored configurations keep the names of their time; Fields::renamed takes them from people.
constexpr std::pair<const char*, const char*> kRenamed[] = {{"item", "micro_batch"},
                                                            {"sft.item", "sft.micro_batch"}};

void use_present_names(std::map<std::string, std::string>& values) {
  for (const auto& [before, now] : kRenamed) {
    auto former = values.extract(before);
    if (former.empty()) continue;
    former.key() = now;
    values.insert(std::move(former));
  }
}

std::map<std::string, std::string> values_of(const std::string& text) {
  std::map<std::string, std::string> out;
  try {
    flatten(toml::parse(text), "", out);
  } catch (const toml::parse_error& error) {
    fail(ErrorKind::kBadFile, cat("a stored configuration cannot be read, line ",
                                  error.source().begin.line, ": ", error.description()));
  }
  use_present_names(out);
  return out;
}

}  // namespace

std::vector<KeyChange> config_differences(const std::string& before, const std::string& now) {
  const std::map<std::string, std::string> old = values_of(before);
  const std::map<std::string, std::string> fresh = values_of(now);
  std::map<std::string, std::string> all = old;
  all.insert(fresh.begin(), fresh.end());
  const auto text = [](const std::map<std::string, std::string>& values, const std::string& key) {
    const auto found = values.find(key);
    return found == values.end() ? std::string("nothing") : found->second;
  };
  std::vector<KeyChange> out;
  for (const auto& [key, value] : all) {
    if (text(old, key) != text(fresh, key)) out.push_back({key, text(old, key), text(fresh, key)});
  }
  return out;
}

}  // namespace tiltflow
