#include "tiltflow/io/json_lines.h"

#include <cmath>
#include <limits>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"

namespace tiltflow {

void JsonLines::write(const nlohmann::ordered_json& object) { file_.write(object.dump() + "\n"); }

nlohmann::ordered_json json_number(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  return value;
}

double number_from_json(const nlohmann::ordered_json& value) {
  if (value.is_number()) return value.get<double>();
  if (value == "inf") return std::numeric_limits<double>::infinity();
  if (value == "-inf") return -std::numeric_limits<double>::infinity();
  return std::numeric_limits<double>::quiet_NaN();
}

std::vector<nlohmann::ordered_json> read_json_lines(const std::filesystem::path& path) {
  std::vector<nlohmann::ordered_json> out;
  if (!std::filesystem::exists(path)) return out;
  const std::string text = read_file(path);
  std::size_t begin = 0;
  for (std::size_t end = text.find('\n'); end != std::string::npos;
       begin = end + 1, end = text.find('\n', begin)) {
    try {
      out.push_back(nlohmann::ordered_json::parse(text.substr(begin, end - begin)));
    } catch (const nlohmann::json::exception&) {
      fail(ErrorKind::kBadFile, cat(path.string(), ": line ", out.size() + 1, " is not JSON"));
    }
  }
  return out;
}

}  // namespace tiltflow
