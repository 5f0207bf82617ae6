#include <cmath>

#include "tests/support.h"
#include "tiltflow/finetune/advantages.h"
#include "tiltflow/verify/control_problems.h"

namespace tiltflow {

TEST(finetune_advantages, KindsGroupsAndLabels) {
  const at::Tensor r = at::tensor({1.0, 3.0, 2.0, 10.0, 10.0, 16.0}, at::kDouble);
  const auto of = [&](const char* kind, double clip = 0) { return advantages(r, {3, kind, clip}); };
  EXPECT_TRUE(at::allclose(of("value"), r));
  EXPECT_TRUE(
      at::allclose(of("centred"), at::tensor({-1.0, 1.0, 0.0, -2.0, -2.0, 4.0}, at::kDouble)));
  EXPECT_NEAR(of("group").view({2, 3}).var(1, false)[1].item<double>(), 1, 1e-3);
  EXPECT_NEAR(of("batch").square().mean().item<double>(), 1, 1e-3);
  EXPECT_TRUE(at::allclose(of("rank").narrow(0, 0, 3),
                           at::tensor({-std::sqrt(1.5), std::sqrt(1.5), 0.0}, at::kDouble)))
      << of("rank");
  EXPECT_EQ(of("centred", 2).max().item<double>(), 2);
  test::expect_error(ErrorKind::kConfig, "no multiple",
                     [&] { advantages(r.narrow(0, 0, 4), {3, "group", 5}); });
  const LabelSource labels = grouped(listed_labels({5, 6, 7}), 2);
  EXPECT_TRUE(at::equal(labels(0, 6), at::tensor({5, 5, 6, 6, 7, 7}, at::kLong)));
  EXPECT_TRUE(at::equal(labels(2, 3), at::tensor({6, 6, 7}, at::kLong)));
}

TEST(finetune_advantages, TiesGetTheSame) {
  const at::Tensor r = at::tensor({0.0, 1.0, 0.0, 1.0, 5.0, 5.0, 5.0, 5.0}, at::kDouble);
  for (const char* kind : {"centred", "group", "batch", "rank", "pairwise"}) {
    const at::Tensor a = advantages(r, {4, kind, 0});
    EXPECT_EQ(a[0].item<double>(), a[2].item<double>()) << kind;
    EXPECT_EQ(a[1].item<double>(), a[3].item<double>()) << kind;
    EXPECT_GT(a[1].item<double>(), a[0].item<double>()) << kind;
    EXPECT_EQ(a.narrow(0, 4, 4).abs().max().item<double>(), 0)
        << kind << ": a group of equal rewards teaches nothing";
  }
  EXPECT_TRUE(at::allclose(advantages(r, {4, "rank", 0}).narrow(0, 0, 4),
                           at::tensor({-1.0, 1.0, -1.0, 1.0}, at::kDouble)));
}

TEST(finetune_advantages, PairwiseWinsAreBounded) {
  const at::Tensor a = advantages(at::tensor({0.0, 1.0, 1e6}, at::kDouble), {3, "pairwise", 0});
  const double s = 1 / (1 + std::exp(-1.0));
  EXPECT_TRUE(at::allclose(a, at::tensor({1 - s - 1, s - 1, 1.0}, at::kDouble), 1e-9, 1e-9)) << a;
  EXPECT_NEAR(a.sum().item<double>(), 0, 1e-9);
}

}  // namespace tiltflow
