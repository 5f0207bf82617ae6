// TOML values and documents as text, numbers in their shortest form. Internal to config/: includes
// the TOML library.
#pragma once

#include <toml++/toml.h>
#include <string>

namespace tiltflow {

std::string toml_text(const toml::node& node);  // on one line: 0.1, "text", [1, 2], { a = 1 }
std::string toml_document(const toml::table& document);  // with [sections]
std::string toml_kind(const toml::node& node);  // in users' words: "the text \"x\"", "the list [1,
                                                // 2]"; long ones are cut

}  // namespace tiltflow
