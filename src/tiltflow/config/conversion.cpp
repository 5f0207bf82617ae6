#include "tiltflow/config/conversion.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "tiltflow/base/count.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/config/toml_text.h"

namespace tiltflow {
namespace {

// The only item of a list, or the node itself: what somebody meant who put too many brackets.
const toml::node& without_brackets(const toml::node& node) {
  const toml::array* array = node.as_array();
  return array && array->size() == 1 ? *array->get(0) : node;
}

std::optional<double> number_meant(const toml::node& node) {
  const toml::node& inner = without_brackets(node);
  if (inner.is_floating_point() || inner.is_integer()) return inner.value<double>();
  if (!inner.is_string()) return std::nullopt;
  const std::string text = *inner.value<std::string>();
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  const bool all = !text.empty() && !*end;
  return all ? std::optional(value) : std::nullopt;
}

Mismatch mismatch(const char* wanted, const toml::node& node, std::string advice) {
  return {wanted, toml_kind(node), std::move(advice), ""};
}

bool among(const std::string& text, std::initializer_list<const char*> words) {
  return std::find(words.begin(), words.end(), text) != words.end();
}

template <class T>
std::optional<Mismatch> convert_list(const toml::node& node, std::vector<T>& target,
                                     const char* wanted) {
  const toml::array* array = node.as_array();
  if (!array) return mismatch(wanted, node, node.is_table() ? "" : cat("[", toml_text(node), "]"));
  std::vector<T> values(array->size());
  for (std::size_t i = 0; i < values.size(); ++i) {
    auto wrong = convert(*array->get(i), values[i]);
    if (!wrong) continue;
    wrong->item = cat("[", i, "]");
    wrong->advice = "";
    return wrong;
  }
  target = std::move(values);
  return std::nullopt;
}

}  // namespace

std::optional<Mismatch> convert(const toml::node& node, double& target) {
  const auto meant = number_meant(node);
  const bool finite = meant && std::isfinite(*meant);
  if (!node.is_floating_point() && !node.is_integer()) {
    return mismatch("a number", node, finite ? shortest(*meant) : "");
  }
  if (!finite) return mismatch("a finite number", node, "");
  target = *meant;
  return std::nullopt;
}

std::optional<Mismatch> convert(const toml::node& node, std::int64_t& target) {
  if (node.is_integer()) {
    target = *node.value<std::int64_t>();
    return std::nullopt;
  }
  const auto meant = number_meant(node);
  const bool whole = meant && std::floor(*meant) == *meant && std::abs(*meant) < 1e15;
  return mismatch("an integer", node,
                  whole ? std::to_string(static_cast<std::int64_t>(*meant)) : "");
}

std::optional<Mismatch> convert(const toml::node& node, bool& target) {
  if (node.is_boolean()) {
    target = *node.value<bool>();
    return std::nullopt;
  }
  const toml::node& inner = without_brackets(node);
  const std::string text = inner.is_string() ? *inner.value<std::string>() : toml_text(inner);
  const bool yes = among(text, {"true", "True", "yes", "on", "1"});
  const bool no = among(text, {"false", "False", "no", "off", "0"});
  return mismatch("true or false", node, yes ? "true" : no ? "false" : "");
}

std::optional<Mismatch> convert(const toml::node& node, std::string& target) {
  if (node.is_string()) {
    target = *node.value<std::string>();
    return std::nullopt;
  }
  const toml::node& inner = without_brackets(node);
  if (inner.is_array() || inner.is_table()) return mismatch("a text", node, "");
  return mismatch("a text", node,
                  inner.is_string() ? toml_text(inner) : cat("\"", toml_text(inner), "\""));
}

std::optional<Mismatch> convert(const toml::node& node, std::vector<double>& target) {
  return convert_list(node, target, "a list of numbers");
}
std::optional<Mismatch> convert(const toml::node& node, std::vector<std::int64_t>& target) {
  return convert_list(node, target, "a list of integers");
}
std::optional<Mismatch> convert(const toml::node& node, std::vector<std::string>& target) {
  return convert_list(node, target, "a list of texts");
}

}  // namespace tiltflow
