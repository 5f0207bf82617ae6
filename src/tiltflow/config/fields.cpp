#include "tiltflow/config/fields.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <set>
#include <sstream>
#include <toml++/toml.h>

#include "tiltflow/base/error.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/strings.h"

namespace tiltflow {

Check<double> positive() {
  return [](const double& v) { return v > 0 && std::isfinite(v) ? "" : "must be positive and finite"; };
}
Check<double> at_least(double low) {
  return [low](const double& v) { return v >= low && std::isfinite(v) ? std::string() : cat("must be finite and at least ", low); };
}
Check<double> between(double low, double high) {
  return [=](const double& v) { return v >= low && v <= high ? std::string() : cat("must lie in [", low, ", ", high, "]"); };
}
Check<std::int64_t> at_least_integer(std::int64_t low) {
  return [low](const std::int64_t& v) { return v >= low ? std::string() : cat("must be at least ", low); };
}
Check<std::string> one_of(std::vector<std::string> choices) {
  return [choices](const std::string& v) {
    if (std::find(choices.begin(), choices.end(), v) != choices.end()) return std::string();
    return cat("must be one of ", join(choices, ", "), did_you_mean(v, choices));
  };
}

struct Fields::Impl {
  struct Scope {
    std::string prefix;     // "train." or "reward[0]."
    toml::table* input;     // null when absent
    toml::table* output;
  };
  std::string file;
  toml::table root, output;
  std::map<const toml::node*, std::string> override_nodes;
  std::vector<Scope> scopes;
  std::vector<std::string> problems;
  std::vector<ResolvedValue> resolved;
  std::set<const toml::node*> seen;
  std::vector<std::string> known;  // every key offered, for suggestions

  std::string source_of(const toml::node& node) const {
    if (override_nodes.count(&node)) return "--set";
    return cat(file, ":", node.source().begin.line);
  }
  toml::node* find(const std::string& key) {
    known.push_back(scopes.back().prefix + key);
    toml::node* node = scopes.back().input ? scopes.back().input->get(key) : nullptr;
    if (node) seen.insert(node);
    return node;
  }
  void complain(const toml::node& node, const std::string& key, const std::string& message) {
    problems.push_back(cat(source_of(node), ": ", scopes.back().prefix, key, " ", message));
  }
  static std::string text(const toml::node& node) {
    std::ostringstream out;
    node.visit([&](const auto& n) { out << n; });
    return out.str();
  }
  template <class T>
  void record(const std::string& key, const toml::node* node, const T& target, const std::string& doc) {
    toml::table& out = *scopes.back().output;
    if constexpr (std::is_same_v<T, double> || std::is_same_v<T, bool> || std::is_same_v<T, std::string> || std::is_same_v<T, std::int64_t>) {
      out.insert_or_assign(key, target);
    } else if constexpr (std::is_same_v<T, std::map<std::string, std::string>>) {
      toml::table table;
      for (const auto& [k, v] : target) table.insert_or_assign(k, v);
      out.insert_or_assign(key, std::move(table));
    } else {
      toml::array array;
      for (const auto& v : target) array.push_back(v);
      out.insert_or_assign(key, std::move(array));
    }
    resolved.push_back({scopes.back().prefix + key, text(*out.get(key)), node ? source_of(*node) : "default", doc});
  }

  // Converts one node; returns false (and complains) on the wrong type.
  bool convert(toml::node& node, const std::string& key, double& target) {
    const auto v = node.is_floating_point() || node.is_integer() ? node.value<double>() : std::nullopt;
    if (v && std::isfinite(*v)) return target = *v, true;
    return complain(node, key, cat("must be a ", v ? "finite " : "", "number, found ", text(node))), false;
  }
  bool convert(toml::node& node, const std::string& key, std::int64_t& target) {
    if (node.is_integer()) return target = *node.value<std::int64_t>(), true;
    return complain(node, key, cat("must be an integer, found ", text(node))), false;
  }
  bool convert(toml::node& node, const std::string& key, bool& target) {
    if (node.is_boolean()) return target = *node.value<bool>(), true;
    return complain(node, key, cat("must be true or false, found ", text(node))), false;
  }
  bool convert(toml::node& node, const std::string& key, std::string& target) {
    if (node.is_string()) return target = *node.value<std::string>(), true;
    return complain(node, key, cat("must be a string, found ", text(node))), false;
  }
  template <class T>
  bool convert(toml::node& node, const std::string& key, std::vector<T>& target) {
    if (!node.is_array()) return complain(node, key, cat("must be an array, found ", text(node))), false;
    std::vector<T> values;
    for (toml::node& item : *node.as_array()) {
      T value{};
      if (!convert(item, key, value)) return false;
      values.push_back(std::move(value));
    }
    target = std::move(values);
    return true;
  }

  template <class T>
  void value(const std::string& key, T& target, const std::string& doc, const Check<T>& check) {
    toml::node* node = find(key);
    if (node && convert(*node, key, target) && check) {
      if (const std::string wrong = check(target); !wrong.empty()) complain(*node, key, cat(wrong, ", found ", text(*node)));
    }
    record(key, node, target, doc);
  }

  void find_unknown(const toml::table& table, const std::string& prefix) {
    for (const auto& [key, node] : table) {
      const std::string name = prefix + std::string(key.str());
      if (!seen.count(&node)) {
        problems.push_back(cat(source_of(node), ": unknown key '", name, "'", did_you_mean(name, known)));
      } else if (node.is_table()) {
        find_unknown(*node.as_table(), name + ".");
      } else if (node.is_array()) {
        std::size_t index = 0;
        for (const toml::node& item : *node.as_array()) {
          if (item.is_table()) find_unknown(*item.as_table(), cat(name, "[", index, "]."));
          ++index;
        }
      }
    }
  }

  void apply_override(const std::string& text);
};

namespace {

// "reward[0].scale" or "reward.0.scale" -> {"reward", "0", "scale"}
std::vector<std::string> key_parts(const std::string& key) {
  std::string plain;
  for (const char c : key) {
    if (c == '[') plain += '.';
    else if (c != ']') plain += c;
  }
  return split(plain, '.');
}

bool is_index(const std::string& part) { return !part.empty() && part.size() < 6 && std::all_of(part.begin(), part.end(), [](char c) { return c >= '0' && c <= '9'; }); }

}  // namespace

void Fields::Impl::apply_override(const std::string& text) {
  const std::size_t equals = text.find('=');
  if (equals == std::string::npos || equals == 0) fail(ErrorKind::kUsage, cat("--set ", text, ": expected key=value"));
  const std::string value = text.substr(equals + 1);
  toml::parse_result parsed = [&] {
    try {
      return toml::parse("v = " + value);
    } catch (const toml::parse_error&) {
      const bool word = !value.empty() && value.find_first_of("\"'[]{}\n=") == std::string::npos;
      if (!word) fail(ErrorKind::kUsage, cat("--set ", text, ": the value is not valid TOML"), "quote strings: --set 'key=\"text\"'");
      toml::table table;
      table.insert("v", value);
      return toml::parse_result(std::move(table));
    }
  }();
  const std::vector<std::string> parts = key_parts(text.substr(0, equals));
  toml::node* node = &root;
  for (std::size_t i = 0; i + 1 < parts.size(); ++i) {
    if (toml::table* table = node->as_table()) {
      if (!table->contains(parts[i])) {
        if (is_index(parts[i + 1])) table->insert(parts[i], toml::array{});
        else table->insert(parts[i], toml::table{});
        override_nodes[table->get(parts[i])] = text;
      }
      node = table->get(parts[i]);
    } else if (toml::array* array = node->as_array(); array && is_index(parts[i])) {
      const std::size_t index = std::stoul(parts[i]);
      if (index > array->size()) fail(ErrorKind::kUsage, cat("--set ", text, ": the list has ", array->size(), " items"));
      if (index == array->size()) array->push_back(toml::table{}), override_nodes[array->get(index)] = text;
      node = array->get(index);
    } else {
      fail(ErrorKind::kUsage, cat("--set ", text, ": '", parts[i], "' is inside a value, not a section"));
    }
  }
  toml::table* table = node->as_table();
  if (!table) fail(ErrorKind::kUsage, cat("--set ", text, ": not a section"));
  parsed.get("v")->visit([&](auto& v) { table->insert_or_assign(parts.back(), v); });
  override_nodes[table->get(parts.back())] = text;
}

Fields::Fields(const std::filesystem::path& file, const std::vector<std::string>& overrides) : impl_(std::make_unique<Impl>()) {
  impl_->file = file.string();
  if (!file.empty()) {
    const std::string content = read_file(file, 16 << 20);
    try {
      impl_->root = toml::parse(content, impl_->file);
    } catch (const toml::parse_error& error) {
      fail(ErrorKind::kConfig, cat(impl_->file, ":", error.source().begin.line, ": ", error.description()));
    }
  }
  for (const std::string& text : overrides) impl_->apply_override(text);
  impl_->scopes.push_back({"", &impl_->root, &impl_->output});
}

Fields::~Fields() = default;

void Fields::value(const std::string& key, double& t, const std::string& doc, const Check<double>& c) { impl_->value(key, t, doc, c); }
void Fields::value(const std::string& key, std::int64_t& t, const std::string& doc, const Check<std::int64_t>& c) { impl_->value(key, t, doc, c); }
void Fields::value(const std::string& key, bool& t, const std::string& doc) { impl_->value<bool>(key, t, doc, {}); }
void Fields::value(const std::string& key, std::string& t, const std::string& doc, const Check<std::string>& c) { impl_->value(key, t, doc, c); }
void Fields::value(const std::string& key, std::vector<std::int64_t>& t, const std::string& doc) { impl_->value<std::vector<std::int64_t>>(key, t, doc, {}); }
void Fields::value(const std::string& key, std::vector<double>& t, const std::string& doc) { impl_->value<std::vector<double>>(key, t, doc, {}); }
void Fields::value(const std::string& key, std::vector<std::string>& t, const std::string& doc) { impl_->value<std::vector<std::string>>(key, t, doc, {}); }

void Fields::table(const std::string& key, std::map<std::string, std::string>& target, const std::string& doc) {
  toml::node* node = impl_->find(key);
  if (node) {
    if (toml::table* table = node->as_table()) {
      target.clear();
      for (auto&& [name, item] : *table) {
        impl_->seen.insert(&item);
        if (item.is_table() || item.is_array()) impl_->complain(item, key + "." + std::string(name.str()), "must be a single value");
        else target[std::string(name.str())] = item.is_string() ? *item.value<std::string>() : Impl::text(item);
      }
    } else {
      impl_->complain(*node, key, "must be a table");
    }
  }
  impl_->record(key, node, target, doc);
}

void Fields::enter(const std::string& key) {
  toml::node* node = impl_->find(key);
  toml::table* input = node ? node->as_table() : nullptr;
  if (node && !input) impl_->complain(*node, key, "must be a section");
  Impl::Scope& parent = impl_->scopes.back();
  if (!parent.output->contains(key)) parent.output->insert(key, toml::table{});
  impl_->scopes.push_back({parent.prefix + key + ".", input, parent.output->get(key)->as_table()});
}

std::size_t Fields::list_size(const std::string& key) {
  toml::node* node = impl_->find(key);
  if (!node) return 0;
  toml::array* array = node->as_array();
  const bool tables = array && std::all_of(array->begin(), array->end(), [](const toml::node& n) { return n.is_table(); });
  if (!tables) return impl_->complain(*node, key, cat("must be a list of sections, written [[", key, "]]")), 0;
  for (toml::node& item : *array) impl_->seen.insert(&item);
  return array->size();
}

void Fields::enter_item(const std::string& key, std::size_t index) {
  Impl::Scope& parent = impl_->scopes.back();
  toml::node* node = parent.input ? parent.input->get(key) : nullptr;
  toml::array* array = node ? node->as_array() : nullptr;
  toml::table* input = array && index < array->size() ? array->get(index)->as_table() : nullptr;
  if (!parent.output->contains(key)) parent.output->insert(key, toml::array{});
  toml::array* out = parent.output->get(key)->as_array();
  out->push_back(toml::table{});
  impl_->scopes.push_back({cat(parent.prefix, key, "[", index, "]."), input, out->get(out->size() - 1)->as_table()});
}

void Fields::leave() { impl_->scopes.pop_back(); }

bool Fields::has(const std::string& key) const {
  const toml::table* input = impl_->scopes.back().input;
  return input && input->get(key);
}

void Fields::problem(const std::string& key, const std::string& message) {
  toml::node* node = impl_->scopes.back().input ? impl_->scopes.back().input->get(key) : nullptr;
  if (node) impl_->complain(*node, key, message);
  else impl_->problems.push_back(cat(impl_->scopes.back().prefix, key, " ", message));
}

void Fields::finish() {
  impl_->find_unknown(impl_->root, "");
  if (impl_->problems.empty()) return;
  const std::size_t n = impl_->problems.size();
  fail(ErrorKind::kConfig, cat(n == 1 ? "configuration: " : cat(n, " problems in the configuration:\n  "), join(impl_->problems, "\n  ")),
       "`tiltflow config show` lists every key with its default");
}

const std::vector<ResolvedValue>& Fields::resolved() const { return impl_->resolved; }

std::string Fields::resolved_toml() const {
  std::ostringstream out;
  out << impl_->output << "\n";
  return out.str();
}

}  // namespace tiltflow
