#include "tiltflow/base/count.h"

#include <array>
#include <charconv>

namespace tiltflow {

std::string counted(std::int64_t count, const std::string& singular, const std::string& plural) {
  if (count == 1) return "1 " + singular;
  return std::to_string(count) + " " + (plural.empty() ? singular + "s" : plural);
}

std::string shortest(double value) {
  std::array<char, 32> text{};
  const auto end = std::to_chars(text.data(), text.data() + text.size(), value).ptr;
  return {text.data(), end};
}

}  // namespace tiltflow
