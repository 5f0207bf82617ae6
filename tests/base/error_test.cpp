#include "tiltflow/base/error.h"

#include "tests/support.h"

namespace tiltflow {

// Scripts and batch systems tell errors apart by these numbers.
TEST(base_error, ExitCodesAreThoseDocumented) {
  const std::pair<ErrorKind, int> documented[] = {
      {ErrorKind::kFailure, 1}, {ErrorKind::kUsage, 2},     {ErrorKind::kConfig, 3},
      {ErrorKind::kBadFile, 4}, {ErrorKind::kNonFinite, 5}, {ErrorKind::kDiverged, 6},
      {ErrorKind::kStopped, 75}};
  for (const auto& [kind, code] : documented) EXPECT_EQ(exit_code(kind), code);
}

}  // namespace tiltflow
