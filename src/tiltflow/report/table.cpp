#include "tiltflow/report/table.h"

#include <algorithm>
#include <cmath>

#include "tiltflow/base/strings.h"
#include "tiltflow/report/html.h"
#include "tiltflow/report/svg_text.h"

namespace tiltflow {

std::string show(const std::optional<Estimate>& e) {
  return !e          ? "-"
         : e->se > 0 ? cat(compact(e->value), " +- ", compact(e->se, 2))
                     : compact(e->value);
}

std::string aligned_text(const TextTable& table) {
  std::string out;
  std::vector<std::size_t> width(table.at(0).size(), 0);
  for (const auto& row : table) {
    for (std::size_t j = 0; j < row.size(); ++j) width[j] = std::max(width[j], row[j].size());
  }
  for (const auto& row : table) {
    for (std::size_t j = 0; j < row.size(); ++j) {
      out += (j ? "  " : "") + pad_right(row[j], width[j]);
    }
    out += "\n";
  }
  return out;
}

std::string rounded(const Estimate& e) {
  if (!std::isfinite(e.value)) return "-";
  if (!(e.se > 0) || !std::isfinite(e.se)) return compact(e.value);
  const int exponent = static_cast<int>(std::floor(std::log10(e.se)));
  if (exponent < -8 || exponent > 5) return cat(compact(e.value), " ± ", compact(e.se, 2));
  const int decimals = std::max(0, 1 - exponent);
  return cat(fixed(e.value, decimals), " ± ", fixed(e.se, decimals));
}

std::string grouped(double number) {
  if (number != std::round(number) || std::abs(number) >= 1e15) return compact(number);
  std::string out = fixed(number, 0);
  for (std::size_t at = out.size(); at > 3 + (number < 0 ? 1 : 0);) out.insert(at -= 3, ",");
  return out;
}

std::string html_table_of(const TextTable& cells, const std::string& label) {
  std::string out = "<table>";
  for (std::size_t i = 0; i < cells.size(); ++i) {
    out += i == 0 ? "<thead><tr>" : "<tr>";
    for (std::size_t j = 0; j < cells[i].size(); ++j) {
      if (i == 0) {
        out += cat("<th scope=\"col\">", cells[i][j], "</th>");
      } else if (j == 0) {
        out += cat("<th scope=\"row\">", cells[i][j], "</th>");
      } else {
        out += cat("<td>", cells[i][j], "</td>");
      }
    }
    out += i == 0 ? "</tr></thead><tbody>" : "</tr>";
  }
  return scrolling(out + "</tbody></table>", label);
}

std::string html_cell(const std::string& text) {
  std::string out = xml_text(text);
  if (const std::size_t at = out.find(" +- "); at != std::string::npos) out.replace(at, 4, " ± ");
  return out;
}

std::string html_table(const TextTable& table, const std::string& label) {
  TextTable cells = table;
  for (auto& row : cells) {
    for (std::string& cell : row) cell = html_cell(cell);
  }
  return html_table_of(cells, label);
}

std::string markdown_table(const TextTable& table) {
  std::string out;
  for (std::size_t i = 0; i < table.size(); ++i) {
    out += "|";
    for (const std::string& cell : table[i]) out += cat(" ", join(split(cell, '|'), "\\|"), " |");
    out += "\n";
    if (i > 0) continue;
    out += "|";
    for (std::size_t j = 0; j < table[0].size(); ++j) out += "---|";
    out += "\n";
  }
  return out;
}

}  // namespace tiltflow
