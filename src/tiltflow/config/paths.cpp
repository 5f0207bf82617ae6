#include "tiltflow/config/paths.h"

#include <cstdlib>

#include "tiltflow/base/strings.h"

namespace tiltflow {

namespace fs = std::filesystem;

std::string located(const std::string& written, const fs::path& base) {
  const char* home = std::getenv("HOME");
  fs::path path = written;
  if (starts_with(written, "~/") && home) path = fs::path(home) / written.substr(2);
  path = fs::absolute(base.empty() ? fs::current_path() : base) / path;  // an absolute path stays
  fs::path shorter = path.lexically_normal();
  if (!shorter.has_filename() && shorter.has_relative_path()) {
    shorter = shorter.parent_path();  // "folder/"
  }
  std::error_code code;
  if (fs::exists(path, code) && !fs::equivalent(path, shorter, code)) {
    return path.string();  // x/.. is not here when x is a link
  }
  return shorter.string();
}

std::string misread_path(const std::string& written, const fs::path& base) {
  if (written.empty() || base.empty() || fs::path(written).is_absolute()) return "";
  const std::string meant = located(written, base);
  const std::string other = located(written, "");
  std::error_code code;
  if (fs::exists(meant, code) || !fs::exists(other, code)) return "";
  const fs::path better = fs::path(other).lexically_relative(fs::absolute(base).lexically_normal());
  return cat("is relative to the folder of the configuration: there is no ", meant, "; write \"",
             better.empty() ? other : better.string(), "\"");
}

}  // namespace tiltflow
