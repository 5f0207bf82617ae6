#include "tiltflow/config/toml_text.h"

#include <algorithm>
#include <sstream>
#include <vector>

#include "tiltflow/base/count.h"
#include "tiltflow/base/strings.h"

namespace tiltflow {
namespace {

std::string key_text(const std::string& key) {
  const auto bare = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '-';
  };
  if (!key.empty() && std::all_of(key.begin(), key.end(), bare)) return key;
  return toml_text(toml::value<std::string>(key));
}

// A TOML float has a point or an exponent.
std::string float_text(double value) {
  const std::string text = shortest(value);
  return text.find_first_of(".en") == std::string::npos ? text + ".0" : text;  // n: inf and nan
}

bool is_list_of_sections(const toml::node& node) {
  const toml::array* array = node.as_array();
  return array && !array->empty() &&
         std::all_of(array->begin(), array->end(),
                     [](const toml::node& item) { return item.is_table(); });
}

void write_section(std::ostringstream& out, const toml::table& section, const std::string& prefix) {
  for (const auto& [key, node] : section) {
    if (!node.is_table() && !is_list_of_sections(node)) {
      out << key_text(std::string(key.str())) << " = " << toml_text(node) << "\n";
    }
  }
  for (const auto& [key, node] : section) {
    const std::string name = prefix + key_text(std::string(key.str()));
    if (const toml::table* table = node.as_table()) {
      out << "\n[" << name << "]\n";
      write_section(out, *table, name + ".");
    } else if (is_list_of_sections(node)) {
      for (const toml::node& item : *node.as_array()) {
        out << "\n[[" << name << "]]\n";
        write_section(out, *item.as_table(), name + ".");
      }
    }
  }
}

}  // namespace

std::string toml_text(const toml::node& node) {
  if (node.is_floating_point()) return float_text(*node.value<double>());
  std::vector<std::string> parts;
  if (const toml::array* array = node.as_array()) {
    for (const toml::node& item : *array) parts.push_back(toml_text(item));
    return cat("[", join(parts, ", "), "]");
  }
  if (const toml::table* table = node.as_table()) {
    for (const auto& [key, item] : *table) {
      parts.push_back(cat(key_text(std::string(key.str())), " = ", toml_text(item)));
    }
    return parts.empty() ? "{}" : cat("{ ", join(parts, ", "), " }");
  }
  std::ostringstream out;
  node.visit([&](const auto& n) { out << n; });
  return out.str();
}

std::string toml_document(const toml::table& document) {
  std::ostringstream out;
  write_section(out, document, "");
  return out.str();
}

std::string toml_kind(const toml::node& node) {
  std::string text = toml_text(node);
  if (text.size() > 60) text = text.substr(0, 57) + "...";
  if (node.is_string()) return "the text " + text;
  if (node.is_array()) return "the list " + text;
  if (node.is_table()) return "the section " + text;
  return text;
}

}  // namespace tiltflow
