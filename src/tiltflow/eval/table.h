// Tables of figures as text and HTML: rows of cells, the first one the heads.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "tiltflow/eval/statistics.h"

namespace tiltflow {

using TextTable = std::vector<std::vector<std::string>>;

std::string show(const std::optional<Estimate>& estimate);  // "value +- se", "value", or "-"
std::string aligned_text(const TextTable& table);
std::string html_table(const TextTable& table);

}  // namespace tiltflow
