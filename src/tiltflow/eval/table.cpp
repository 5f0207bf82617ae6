#include "tiltflow/eval/table.h"

#include <algorithm>

#include "tiltflow/base/strings.h"

namespace tiltflow {

std::string show(const std::optional<Estimate>& e) { return !e ? "-" : e->se > 0 ? cat(compact(e->value), " +- ", compact(e->se, 2)) : compact(e->value); }

std::string aligned_text(const TextTable& table) {
  std::string out;
  std::vector<std::size_t> width(table.at(0).size(), 0);
  for (const auto& row : table) for (std::size_t j = 0; j < row.size(); ++j) width[j] = std::max(width[j], row[j].size());
  for (const auto& row : table) {
    for (std::size_t j = 0; j < row.size(); ++j) out += (j ? "  " : "") + pad_right(row[j], width[j]);
    out += "\n";
  }
  return out;
}

std::string html_table(const TextTable& table) {
  std::string out = "<table>";
  bool head = true;
  for (const auto& row : table) {
    out += "<tr>";
    for (const std::string& cell : row) out += cat(head ? "<th>" : "<td>", html_escape(cell), head ? "</th>" : "</td>");
    out += "</tr>", head = false;
  }
  return out + "</table>";
}

}  // namespace tiltflow
