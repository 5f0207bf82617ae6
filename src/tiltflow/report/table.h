// Tables of figures as text and HTML: rows of cells, the first one the heads.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "tiltflow/tensor/statistics.h"

namespace tiltflow {

using TextTable = std::vector<std::vector<std::string>>;

std::string show(const std::optional<Estimate>& estimate);  // "value +- se", "value", or "-"
// "0.2131 ± 0.0042": as many digits as the standard error has meaning, two of its own; for people.
std::string rounded(const Estimate& estimate);
std::string grouped(double number);  // "2,500,000" for whole numbers below 10^15
std::string aligned_text(const TextTable& table);
std::string markdown_table(const TextTable& table);
std::string html_cell(const std::string& text);  // escaped, with a proper ±
// Scrolls inside its own box; `label` is for screen readers.
std::string html_table(const TextTable& table, const std::string& label = "table of figures");
// The same of cells that are HTML already.
std::string html_table_of(const TextTable& cells, const std::string& label);

}  // namespace tiltflow
