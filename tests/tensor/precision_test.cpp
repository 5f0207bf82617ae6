#include "tiltflow/tensor/precision.h"
#include "tests/support.h"

namespace tiltflow {

TEST(tensor_precision, Bf16ProductsStayCloseAndReturnFp32) {
  const at::Tensor x = at::randn({8, 64});
  const at::Tensor w = at::randn({32, 64});
  const at::Tensor b = at::randn({32});
  const at::Tensor full = linear_in(MatmulPrecision::kFull, x, w, b);
  const at::Tensor half = linear_in(MatmulPrecision::kBf16, x, w, b);
  EXPECT_EQ(half.scalar_type(), at::kFloat);
  EXPECT_LT(test::relative_error(half, full), 0.02);  // 8 bits of mantissa, 64 terms
  EXPECT_GT(test::relative_error(half, full), 1e-5);  // and bf16 was really used
  test::expect_error(ErrorKind::kNonFinite, "thing",
                     [&] { require_finite(x / 0.0 * 0.0, "thing"); });
}

}  // namespace tiltflow
