#include "tiltflow/finetune/path_losses.h"
#include "tests/finetune/method_bench.h"
#include "tests/support.h"
#include "tiltflow/finetune/direct_gradient.h"
#include "tiltflow/tensor/statistics.h"

namespace tiltflow {
namespace {

using test::dot_product;
using test::MethodBench;

}  // namespace

TEST(finetune_path_losses, LogVarianceGradientIsTwiceTheRelativeEntropys) {
  const MethodBench b(at::kDouble);
  PathLoss variance("log-variance");
  DirectGradient entropy("discrete-adjoint", {});
  const std::vector<at::Tensor> direction =
      b.gradient(entropy, 4000, 99);  // any fixed direction along which both are compared
  std::vector<double> twice, difference;
  for (std::int64_t step = 0; step < 24; ++step) {
    twice.push_back(2 * dot_product(b.gradient(entropy, 4000, 100 + step), direction));
    difference.push_back(dot_product(b.gradient(variance, 4000, step), direction) - twice.back());
  }
  const Estimate size = mean_estimate(at::tensor(twice, at::kDouble));
  const Estimate off = mean_estimate(at::tensor(difference, at::kDouble));
  EXPECT_LT(off.se, 0.1 * size.value);
  EXPECT_NEAR(off.value, 0, 4 * off.se);
}

}  // namespace tiltflow
