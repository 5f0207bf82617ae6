// metrics.jsonl: one JSON object a line. Non-finite numbers are written as the strings "nan",
// "inf", "-inf".
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <vector>

#include "tiltflow/base/file.h"

namespace tiltflow {

class JsonLines {
 public:
  explicit JsonLines(const std::filesystem::path& path) : file_(path) {}
  void write(const nlohmann::ordered_json& object);
  void sync() { file_.sync(); }

 private:
  LineAppender file_;
};

nlohmann::ordered_json json_number(double value);
double number_from_json(const nlohmann::ordered_json& value);  // the inverse

// All complete lines; a last line without newline (a kill while writing) is ignored. Missing file:
// empty.
std::vector<nlohmann::ordered_json> read_json_lines(const std::filesystem::path& path);

}  // namespace tiltflow
