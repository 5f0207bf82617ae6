#include "tiltflow/base/log.h"

#include <unistd.h>

#include <atomic>
#include <cstdio>

namespace tiltflow {
namespace {

std::atomic<LogLevel> g_level{LogLevel::kInfo};

void emit(LogLevel level, const char* prefix, const std::string& message) {
  if (g_level.load() < level) return;
  // "\r\x1b[K" clears a progress bar that may stand on the line.
  std::fprintf(stderr, "%s%s%s\n", stderr_is_terminal() ? "\r\x1b[K" : "", prefix, message.c_str());
  std::fflush(stderr);
}

}  // namespace

void set_log_level(LogLevel level) { g_level = level; }
LogLevel log_level() { return g_level.load(); }
void log_info(const std::string& message) { emit(LogLevel::kInfo, "", message); }
void log_warn(const std::string& message) { emit(LogLevel::kWarn, "warning: ", message); }
void log_debug(const std::string& message) { emit(LogLevel::kDebug, "debug: ", message); }
bool stderr_is_terminal() {
  static const bool terminal = isatty(STDERR_FILENO) == 1;
  return terminal;
}

}  // namespace tiltflow
