// Rows of the exactness suite: problem, quantity, exact value, obtained value with standard error,
// verdict.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tiltflow/tensor/statistics.h"

namespace tiltflow {

struct VerifyRow {
  std::string problem, quantity;
  double exact = 0;
  Estimate obtained;
  double tolerance = 0;  // accepted |obtained - exact|, standard error included by the caller
  bool negative_control = false;  // a deliberately broken variant: it must miss the tolerance
  std::string remark;
  bool within() const;  // false for non-finite values
  bool ok() const { return within() != negative_control; }
};

struct VerifyReport {
  std::string suite;
  std::vector<VerifyRow> rows;
  double seconds = 0;
  bool passed() const;
};

std::string table_text(const std::vector<VerifyRow>& rows);
std::string table_text(const VerifyReport& report);  // with the summary line
nlohmann::ordered_json to_json(const VerifyReport& report);

}  // namespace tiltflow
