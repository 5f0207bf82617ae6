#include "tiltflow/config/fields.h"

#include <toml++/toml.h>
#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "tiltflow/base/count.h"
#include "tiltflow/base/error.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/log.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/config/conversion.h"
#include "tiltflow/config/paths.h"
#include "tiltflow/config/toml_text.h"

namespace tiltflow {

struct Fields::Impl {
  struct Scope {
    std::string prefix;  // "train." or "reward[0]."
    toml::table* input;  // null when absent
    toml::table* output;
    std::map<std::string, std::string> former;  // of renamed keys: now -> before
  };
  std::string file;
  toml::table root, output;
  struct FromOutside {
    std::string origin, text;
    std::filesystem::path base;
  };
  std::map<const toml::node*, FromOutside> override_nodes;  // with everything below them
  std::vector<Override> unset;
  std::vector<Scope> scopes;
  std::vector<std::string> problems;
  std::vector<ResolvedValue> resolved;
  std::vector<InputPath> inputs;
  std::set<const toml::node*> seen;
  std::vector<std::string> known;  // every key offered, for suggestions
  std::set<std::string> free_tables, empty_lists;

  std::string source_of(const toml::node& node) const {
    if (const auto found = override_nodes.find(&node); found != override_nodes.end()) {
      return found->second.origin;
    }
    return cat(file, ":", node.source().begin.line);
  }
  // The same with what an override says, for messages.
  std::string place_of(const toml::node& node) const {
    const auto found = override_nodes.find(&node);
    return found == override_nodes.end() ? source_of(node)
                                         : cat(found->second.origin, " ", found->second.text);
  }
  toml::node* find(const std::string& key) {
    known.push_back(scopes.back().prefix + key);
    toml::node* node = scopes.back().input ? scopes.back().input->get(key) : nullptr;
    if (toml::node* former = find_former(key)) node = former_or_now(*former, node, key);
    if (node) seen.insert(node);
    return node;
  }
  // What stands under the former name of a key.
  toml::node* find_former(const std::string& key) {
    const auto found = scopes.back().former.find(key);
    if (found == scopes.back().former.end()) return nullptr;
    known.push_back(scopes.back().prefix + found->second);
    toml::node* node = scopes.back().input ? scopes.back().input->get(found->second) : nullptr;
    const std::string name = scopes.back().prefix + key;
    const auto takes_it_away = [&](const Override& change) { return change.text == name; };
    if (!node || std::none_of(unset.begin(), unset.end(), takes_it_away)) return node;
    seen.insert(node);
    return nullptr;
  }
  toml::node* former_or_now(toml::node& former, toml::node* now, const std::string& key) {
    const std::string before = scopes.back().prefix + scopes.back().former.at(key);
    seen.insert(&former);
    log_warn(
        cat(source_of(former), ": '", before, "' is now called '", scopes.back().prefix, key, "'"));
    if (!now) return &former;
    seen.insert(now);
    const bool outside = override_nodes.count(&former) != 0;
    if (outside != (override_nodes.count(now) != 0)) return outside ? &former : now;
    complain(*now, key, cat("is given twice: ", before, " is its former name"));
    return now;
  }
  void complain(const toml::node& node, const std::string& key, const std::string& message) {
    problems.push_back(cat(place_of(node), ": ", scopes.back().prefix, key, " ", message));
  }
  void complain_of_type(const toml::node& node, const std::string& key, const Mismatch& wrong) {
    complain(node, key + wrong.item,
             cat("must be ", wrong.wanted, ", found ", wrong.found,
                 wrong.advice.empty()
                     ? ""
                     : cat("; write ", scopes.back().prefix, key, " = ", wrong.advice)));
  }
  template <class T>
  void record(const std::string& key, const toml::node* node, const T& target,
              const std::string& doc) {
    toml::table& out = *scopes.back().output;
    if constexpr (std::is_same_v<T, double> || std::is_same_v<T, bool> ||
                  std::is_same_v<T, std::string> || std::is_same_v<T, std::int64_t>) {
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
    resolved.push_back({scopes.back().prefix + key, toml_text(*out.get(key)),
                        node ? source_of(*node) : "default", doc});
  }

  // Returns false (and complains) on the wrong type.
  template <class T>
  bool converted(toml::node& node, const std::string& key, T& target) {
    const auto wrong = convert(node, target);
    if (wrong) complain_of_type(node, key, *wrong);
    return !wrong;
  }

  template <class T>
  void value(const std::string& key, T& target, const std::string& doc, const Check<T>& check) {
    toml::node* node = find(key);
    if (node && converted(*node, key, target) && check) {
      if (const std::string wrong = check(target); !wrong.empty()) {
        complain(*node, key, cat(wrong, ", found ", toml_text(*node)));
      }
    }
    record(key, node, target, doc);
  }

  // The folder that paths of a value are relative to.
  std::filesystem::path base_of(const toml::node* node) const {
    if (!node) return {};
    const auto found = override_nodes.find(node);
    if (found != override_nodes.end()) return found->second.base;
    return std::filesystem::absolute(file).parent_path();
  }
  // Makes one path absolute and notes it. `name` has the index of a list behind the key.
  void place(const toml::node* node, const std::string& key, const std::string& name,
             std::string& target, PathKind kind) {
    if (target.empty()) return;
    if (const std::string wrong = misread_path(target, base_of(node)); !wrong.empty()) {
      complain(*node, key, cat("= \"", target, "\" ", wrong));
    }
    target = located(target, base_of(node));
    inputs.push_back({scopes.back().prefix + name, target, kind});
  }

  void find_unknown(const toml::table& table, const std::string& prefix) {
    for (const auto& [key, node] : table) {
      const std::string name = prefix + std::string(key.str());
      if (!seen.count(&node)) {
        problems.push_back(
            cat(place_of(node), ": unknown key '", name, "'", did_you_mean(name, known)));
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

  void find_unknown_unset();
  void mark(const toml::node& node, const FromOutside& from);
  void apply_override(const Override& change);
  toml::node* step_into(toml::node& node, const std::vector<KeyPart>& parts, std::size_t i,
                        const FromOutside& from);
  void remove(const Override& change);
};

namespace {

std::string file_and_line(const std::string& file, const toml::parse_error& error) {
  return cat(file, ":", error.source().begin.line, ": ", error.description());
}

// The value of "key=value"; a bare word counts as a string.
toml::table parsed_value(const std::string& value, const std::string& where) {
  try {
    return toml::parse("v = " + value);
  } catch (const toml::parse_error&) {
    const bool word = !value.empty() && value.find_first_of("\"'[]{}\n=") == std::string::npos;
    if (!word) {
      fail(ErrorKind::kUsage, cat(where, ": the value is not valid TOML"),
           "texts are quoted inside lists and sections: --set 'key=[\"text\"]'");
    }
    toml::table table;
    table.insert("v", value);
    return table;
  }
}

}  // namespace

void Fields::Impl::mark(const toml::node& node, const FromOutside& from) {
  override_nodes[&node] = from;
  if (const toml::table* table = node.as_table()) {
    for (const auto& [key, child] : *table) mark(child, from);
  } else if (const toml::array* array = node.as_array()) {
    for (const toml::node& child : *array) mark(child, from);
  }
}

// The node that parts[i] names inside `node`, made when it is missing.
toml::node* Fields::Impl::step_into(toml::node& node, const std::vector<KeyPart>& parts,
                                    std::size_t i, const FromOutside& from) {
  const KeyPart& part = parts[i];
  const std::string where = cat(from.origin, " ", from.text);
  if (toml::table* table = node.as_table()) {
    if (!table->contains(part.name)) {
      if (parts[i + 1].index()) {
        table->insert(part.name, toml::array{});
      } else {
        table->insert(part.name, toml::table{});
      }
      mark(*table->get(part.name), from);
    }
    return table->get(part.name);
  }
  toml::array* array = node.as_array();
  if (!array) {
    fail(ErrorKind::kUsage, cat(where, ": '", part.name, "' is inside a value, not a section"));
  }
  if (!part.index()) {
    fail(ErrorKind::kUsage,
         cat(where, ": '", parts[i - 1].name, "' is a list of ",
             counted(static_cast<std::int64_t>(array->size()), "section")),
         cat("say which: ", parts[i - 1].name, "[0].", part.name));
  }
  const std::size_t index = std::stoul(part.name);
  if (index > array->size()) {
    fail(ErrorKind::kUsage,
         cat(where, ": the list has ", counted(static_cast<std::int64_t>(array->size()), "item")),
         cat("[", array->size(), "] adds one"));
  }
  if (index == array->size()) {
    array->push_back(toml::table{});
    mark(*array->get(index), from);
  }
  return array->get(index);
}

void Fields::Impl::apply_override(const Override& change) {
  if (change.unset) return remove(change);
  const FromOutside from{change.origin,
                         change.text.size() > 60 ? change.text.substr(0, 57) + "..." : change.text,
                         change.base};
  const std::string where = cat(from.origin, " ", from.text);
  const std::size_t equals = equals_of(change.text);
  if (equals == std::string::npos || equals == 0) {
    fail(ErrorKind::kUsage, cat(where, ": expected key=value"));
  }
  const toml::table parsed = parsed_value(change.text.substr(equals + 1), where);
  const std::vector<KeyPart> parts = key_parts(change.text.substr(0, equals), where);
  toml::node* node = &root;
  for (std::size_t i = 0; i + 1 < parts.size(); ++i) node = step_into(*node, parts, i, from);
  const toml::node& value = *parsed.get("v");
  toml::table* table = node->as_table();
  if (table) {
    value.visit([&](const auto& v) { table->insert_or_assign(parts.back().name, v); });
    mark(*table->get(parts.back().name), from);
    return;
  }
  step_into(*node, parts, parts.size() - 1,
            from);  // refuses what is no list, and adds an item behind the last
  toml::array& list = *node->as_array();
  const auto place = static_cast<std::ptrdiff_t>(std::stoul(parts.back().name));
  value.visit([&](const auto& v) { list.replace(list.cbegin() + place, v); });
  mark(*list.get(static_cast<std::size_t>(place)), from);
}

void Fields::Impl::remove(const Override& change) {
  const std::vector<KeyPart> parts = key_parts(change.text, cat(change.origin, " ", change.text));
  unset.push_back(change);
  toml::node* node = &root;
  for (std::size_t i = 0; node && i < parts.size(); ++i) {
    const bool last = i + 1 == parts.size();
    if (toml::table* table = node->as_table()) {
      if (last) table->erase(parts[i].name);
      node = table->get(parts[i].name);
    } else if (toml::array* array = node->as_array(); array && parts[i].index()) {
      const std::size_t index = std::stoul(parts[i].name);
      if (last && index < array->size()) {
        array->erase(array->cbegin() + static_cast<std::ptrdiff_t>(index));
      }
      node = array->get(index);
    } else {
      node = nullptr;
    }
  }
}

// A key that was unset must be one: a section, a list, a value, or a name in a free table.
void Fields::Impl::find_unknown_unset() {
  for (const Override& change : unset) {
    const std::string key = without_indices(change.text);
    const auto names = [&](const std::string& name) {
      const std::string plain = without_indices(name);
      const bool same = plain == key;
      const bool above =
          starts_with(plain, key + ".") || starts_with(plain, key + "[") || plain + "[]" == key;
      const bool inside = free_tables.count(name) && starts_with(key, plain + ".");
      const bool absent = empty_lists.count(name) && starts_with(key, plain + "[");
      return same || above || inside || absent;
    };
    if (std::none_of(known.begin(), known.end(), names)) {
      problems.push_back(
          cat(change.origin, " ", change.text, ": unknown key", did_you_mean(change.text, known)));
    }
  }
}

Fields::Fields(const std::filesystem::path& file, const std::vector<Override>& overrides)
    : impl_(std::make_unique<Impl>()) {
  impl_->file = file.string();
  if (!file.empty()) {
    const std::string content = read_file(file, 16 << 20);
    try {
      impl_->root = toml::parse(content, impl_->file);
    } catch (const toml::parse_error& error) {
      fail(ErrorKind::kConfig, file_and_line(impl_->file, error));
    }
  }
  for (const Override& change : overrides) impl_->apply_override(change);
  impl_->scopes.push_back({"", &impl_->root, &impl_->output, {}});
}

Fields::~Fields() = default;

void Fields::renamed(const std::string& before, const std::string& now) {
  impl_->scopes.back().former[now] = before;
}

void Fields::value(const std::string& key, double& t, const std::string& doc,
                   const Check<double>& c) {
  impl_->value(key, t, doc, c);
}
void Fields::value(const std::string& key, std::int64_t& t, const std::string& doc,
                   const Check<std::int64_t>& c) {
  impl_->value(key, t, doc, c);
}
void Fields::value(const std::string& key, bool& t, const std::string& doc) {
  impl_->value<bool>(key, t, doc, {});
}
void Fields::value(const std::string& key, std::string& t, const std::string& doc,
                   const Check<std::string>& c) {
  impl_->value(key, t, doc, c);
}
void Fields::value(const std::string& key, std::vector<std::int64_t>& t, const std::string& doc) {
  impl_->value<std::vector<std::int64_t>>(key, t, doc, {});
}
void Fields::value(const std::string& key, std::vector<double>& t, const std::string& doc) {
  impl_->value<std::vector<double>>(key, t, doc, {});
}
void Fields::value(const std::string& key, std::vector<std::string>& t, const std::string& doc) {
  impl_->value<std::vector<std::string>>(key, t, doc, {});
}

void Fields::path(const std::string& key, std::string& target, PathKind kind,
                  const std::string& doc, const std::vector<std::string>& words) {
  toml::node* node = impl_->find(key);
  if (node) impl_->converted(*node, key, target);
  if (std::find(words.begin(), words.end(), target) == words.end()) {
    impl_->place(node, key, key, target, kind);
  }
  impl_->record(key, node, target, doc);
}

void Fields::path(const std::string& key, std::vector<std::string>& target, PathKind kind,
                  const std::string& doc) {
  toml::node* node = impl_->find(key);
  if (node) impl_->converted(*node, key, target);
  for (std::size_t i = 0; i < target.size(); ++i) {
    impl_->place(node, key, cat(key, "[", i, "]"), target[i], kind);
  }
  impl_->record(key, node, target, doc);
}

void Fields::table(const std::string& key, std::map<std::string, std::string>& target,
                   const std::string& doc) {
  toml::node* node = impl_->find(key);
  impl_->free_tables.insert(impl_->scopes.back().prefix + key);
  if (node) {
    if (toml::table* table = node->as_table()) {
      target.clear();
      for (auto&& [name, item] : *table) {
        impl_->seen.insert(&item);
        if (item.is_table() || item.is_array()) {
          impl_->complain(item, key + "." + std::string(name.str()),
                          cat("must be a single value, found ", toml_kind(item)));
        } else {
          target[std::string(name.str())] =
              item.is_string() ? *item.value<std::string>() : toml_text(item);
        }
      }
    } else {
      impl_->complain_of_type(
          *node, key,
          {cat("a section of names and values, e.g. ", key, " = { num_heads = 4 }"),
           toml_kind(*node), "", ""});
    }
  }
  impl_->record(key, node, target, doc);
}

void Fields::enter(const std::string& key) {
  toml::node* node = impl_->find(key);
  toml::table* input = node ? node->as_table() : nullptr;
  if (node && !input) {
    impl_->complain_of_type(
        *node, key,
        {cat("a section, written [", impl_->scopes.back().prefix, key, "] with its keys below"),
         toml_kind(*node), "", ""});
  }
  Impl::Scope& parent = impl_->scopes.back();
  if (!parent.output->contains(key)) parent.output->insert(key, toml::table{});
  impl_->scopes.push_back(
      {parent.prefix + key + ".", input, parent.output->get(key)->as_table(), {}});
}

std::size_t Fields::list_size(const std::string& key) {
  toml::node* node = impl_->find(key);
  if (!node) {
    impl_->empty_lists.insert(impl_->scopes.back().prefix + key);
    return 0;
  }
  toml::array* array = node->as_array();
  const bool tables = array && std::all_of(array->begin(), array->end(),
                                           [](const toml::node& n) { return n.is_table(); });
  if (!tables) {
    impl_->complain_of_type(
        *node, key, {cat("a list of sections, written [[", key, "]]"), toml_kind(*node), "", ""});
    return 0;
  }
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
  impl_->scopes.push_back({cat(parent.prefix, key, "[", index, "]."),
                           input,
                           out->get(out->size() - 1)->as_table(),
                           {}});
}

void Fields::leave() { impl_->scopes.pop_back(); }

bool Fields::has(const std::string& key) const {
  const Impl::Scope& scope = impl_->scopes.back();
  const auto former = scope.former.find(key);
  const bool once = former != scope.former.end() && scope.input && scope.input->get(former->second);
  return once || (scope.input && scope.input->get(key));
}

void Fields::problem(const std::string& key, const std::string& message) {
  toml::node* node = impl_->scopes.back().input ? impl_->scopes.back().input->get(key) : nullptr;
  if (node) {
    impl_->complain(*node, key, message);
  } else {
    impl_->problems.push_back(cat(impl_->scopes.back().prefix, key, " ", message));
  }
}

void Fields::finish() {
  impl_->find_unknown(impl_->root, "");
  impl_->find_unknown_unset();
  if (impl_->problems.empty()) return;
  const std::size_t n = impl_->problems.size();
  fail(ErrorKind::kConfig,
       cat(n == 1 ? "configuration: " : cat(n, " problems in the configuration:\n  "),
           join(impl_->problems, "\n  ")),
       "`tiltflow config show` lists every key with its default");
}

const std::vector<ResolvedValue>& Fields::resolved() const { return impl_->resolved; }

const std::vector<InputPath>& Fields::inputs() const { return impl_->inputs; }

std::string Fields::resolved_toml() const { return toml_document(impl_->output); }

}  // namespace tiltflow
