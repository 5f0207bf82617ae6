#include "tiltflow/base/hash.h"
#include "tests/support.h"

namespace tiltflow {

TEST(base_hash, KnownValues) {
  EXPECT_EQ(crc32c("123456789"), 0xe3069283u);  // the check value of CRC-32C
  EXPECT_EQ(base64("Ma"), "TWE=");
  EXPECT_EQ(base64("Man"), "TWFu");
  EXPECT_EQ(base64("M"), "TQ==");
}

}  // namespace tiltflow
