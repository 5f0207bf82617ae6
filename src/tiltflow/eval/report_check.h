// The tilted-law check as a report shows it: tables with tolerances, densities of base, p* and tuned model.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace tiltflow {

// `check` is check.json; HTML. Throws nlohmann::json::exception when parts are missing.
std::string check_html(const nlohmann::ordered_json& check);

}  // namespace tiltflow
