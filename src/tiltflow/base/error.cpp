#include "tiltflow/base/error.h"

#include <utility>

namespace tiltflow {

Error::Error(ErrorKind kind, std::string message, std::string hint)
    : kind_(kind), message_(std::move(message)), hint_(std::move(hint)) {}

void fail(ErrorKind kind, std::string message, std::string hint) {
  throw Error(kind, std::move(message), std::move(hint));
}

int exit_code(ErrorKind kind) noexcept {
  switch (kind) {
    case ErrorKind::kFailure:
      return 1;
    case ErrorKind::kUsage:
      return 2;
    case ErrorKind::kConfig:
      return 3;
    case ErrorKind::kBadFile:
      return 4;
    case ErrorKind::kNonFinite:
      return 5;
    case ErrorKind::kDiverged:
      return 6;
    case ErrorKind::kStopped:
      return 75;
  }
  return 1;
}

}  // namespace tiltflow
