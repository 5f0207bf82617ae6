// TOML values as the types of configuration keys. Internal to config/: includes the TOML library.
#pragma once

#include <toml++/toml.h>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace tiltflow {

struct Mismatch {
  std::string wanted;  // "an integer"
  std::string found;   // "the list [3]"
  std::string advice;  // the value as it was probably meant, in TOML, or ""
  std::string item;    // "[1]": of a list
};

// Sets `target`, or says why `node` is none of its type.
std::optional<Mismatch> convert(const toml::node& node, double& target);
std::optional<Mismatch> convert(const toml::node& node, std::int64_t& target);
std::optional<Mismatch> convert(const toml::node& node, bool& target);
std::optional<Mismatch> convert(const toml::node& node, std::string& target);
std::optional<Mismatch> convert(const toml::node& node, std::vector<double>& target);
std::optional<Mismatch> convert(const toml::node& node, std::vector<std::int64_t>& target);
std::optional<Mismatch> convert(const toml::node& node, std::vector<std::string>& target);

}  // namespace tiltflow
