#include <stdexcept>

#include "tests/support.h"
#include "tiltflow/base/problems.h"

namespace tiltflow {

TEST(base_problems, AreShownTogether) {
  Problems none;
  EXPECT_TRUE(none.check([] {}));
  EXPECT_NO_THROW(none.raise());
  Problems one;
  EXPECT_FALSE(one.check([] { fail(ErrorKind::kBadFile, "a.pt is broken", "mend it"); }));
  test::expect_error(ErrorKind::kBadFile, "a.pt is broken", [&] { one.raise(); });
  Problems many;
  many.check([] { fail(ErrorKind::kConfig, "first", "a hint"); });
  many.check("run 2", [] { fail(ErrorKind::kBadFile, "second"); });
  many.check([] { fail(ErrorKind::kConfig, "first"); });  // said once
  many.check([] { throw std::runtime_error("of libtorch\nException raised from somewhere"); });
  test::expect_error(ErrorKind::kConfig,
                     "3 problems:\n- first\n  hint: a hint\n- run 2: second\n- of libtorch",
                     [&] { many.raise(); });
  Problems stopped;
  EXPECT_THROW(stopped.check([] { fail(ErrorKind::kStopped, "signal"); }), Error);
}

}  // namespace tiltflow
