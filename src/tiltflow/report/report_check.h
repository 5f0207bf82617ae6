// The tilted-law check as a report shows it: tables with tolerances, densities of base, p* and
// tuned model.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "tiltflow/tensor/statistics.h"

namespace tiltflow {

// {"value": v, "se": e} of check.json and its like.
Estimate estimate_from_json(const nlohmann::ordered_json& estimate);

// `check` is check.json; HTML. Throws nlohmann::json::exception when parts are missing.
std::string check_html(const nlohmann::ordered_json& check);

}  // namespace tiltflow
