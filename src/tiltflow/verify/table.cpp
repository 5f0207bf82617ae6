#include "tiltflow/verify/table.h"

#include <algorithm>
#include <cmath>

#include "tiltflow/base/strings.h"
#include "tiltflow/finetune/methods.h"
#include "tiltflow/io/json_lines.h"

namespace tiltflow {

bool VerifyRow::within() const {
  return std::isfinite(obtained.value) && std::abs(obtained.value - exact) <= tolerance;
}

bool VerifyReport::passed() const {
  return !rows.empty() &&
         std::all_of(rows.begin(), rows.end(), [](const VerifyRow& row) { return row.ok(); });
}

namespace {
std::string verdict(const VerifyRow& row) {
  if (!row.negative_control) return row.ok() ? "ok" : "FAILED";
  return row.ok() ? "fails, as it must" : "PASSED, but must fail";
}
}  // namespace

std::string table_text(const std::vector<VerifyRow>& rows) {
  std::size_t problem = 8;
  std::size_t quantity = 8;
  for (const VerifyRow& row : rows) {
    problem = std::max(problem, row.problem.size());
    quantity = std::max(quantity, row.quantity.size());
  }
  const auto line = [&](const std::string& a, const std::string& b, const std::string& c,
                        const std::string& d, const std::string& e, const std::string& f) {
    return cat(pad_right(a, problem + 2), pad_right(b, quantity + 2), pad_left(c, 11),
               pad_left(d, 24), pad_left(e, 11), "  ", f, "\n");
  };
  std::string out = line("problem", "quantity", "exact", "obtained", "tolerance", "verdict");
  for (const VerifyRow& row : rows) {
    const std::string obtained = compact(row.obtained.value, 5) +
                                 (row.obtained.se > 0 ? " +- " + compact(row.obtained.se, 2) : "");
    out +=
        line(row.problem, row.quantity, compact(row.exact, 5), obtained, compact(row.tolerance, 2),
             verdict(row) + (row.remark.empty() ? "" : "  (" + row.remark + ")"));
  }
  return out;
}

std::string table_text(const VerifyReport& report) {
  std::string out = table_text(report.rows);
  const auto good = std::count_if(report.rows.begin(), report.rows.end(),
                                  [](const VerifyRow& row) { return row.ok(); });
  const auto controls = std::count_if(report.rows.begin(), report.rows.end(),
                                      [](const VerifyRow& row) { return row.negative_control; });
  if (report.suite == "methods") out += "\n" + method_table_text() + "\n";
  out += cat(report.passed() ? "PASSED: " : "FAILED: ", good, " of ", report.rows.size(),
             " rows as they should be (", controls, " negative controls), ",
             format_duration(report.seconds), "\n");
  return out;
}

nlohmann::ordered_json to_json(const VerifyReport& report) {
  nlohmann::ordered_json out{{"suite", report.suite},
                             {"passed", report.passed()},
                             {"seconds", report.seconds},
                             {"rows", nlohmann::ordered_json::array()}};
  for (const VerifyRow& row : report.rows) {
    out["rows"].push_back({{"problem", row.problem},
                           {"quantity", row.quantity},
                           {"exact", json_number(row.exact)},
                           {"obtained", json_number(row.obtained.value)},
                           {"se", json_number(row.obtained.se)},
                           {"tolerance", json_number(row.tolerance)},
                           {"negative_control", row.negative_control},
                           {"within_tolerance", row.within()},
                           {"ok", row.ok()},
                           {"verdict", verdict(row)},
                           {"remark", row.remark}});
  }
  if (report.suite == "methods") {
    for (const MethodListing& m : method_listing()) {
      out["methods"].push_back({{"name", m.name},
                                {"samples", m.samples},
                                {"reward_gradient", m.reward_gradient()},
                                {"calls", m.calls},
                                {"needs", m.needs},
                                {"paper", m.paper}});
    }
  }
  return out;
}

}  // namespace tiltflow
