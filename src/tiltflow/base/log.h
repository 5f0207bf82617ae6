// Messages for people: always to stderr, never to stdout (which carries data).
#pragma once

#include <string>

namespace tiltflow {

enum class LogLevel { kQuiet = 0, kWarn = 1, kInfo = 2, kDebug = 3 };

void set_log_level(LogLevel level);
LogLevel log_level();
void log_info(const std::string& message);
void log_warn(const std::string& message);
void log_debug(const std::string& message);

// True when stderr is a terminal (progress bars draw only then).
bool stderr_is_terminal();

}  // namespace tiltflow
