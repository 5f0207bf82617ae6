#include "tiltflow/finetune/screening.h"
#include "tests/finetune/wrapper_bench.h"
#include "tests/support.h"
#include "tiltflow/finetune/endpoint_regression.h"

namespace tiltflow {
namespace {

using test::WrapperBench;

}  // namespace

TEST(finetune_screening, BestAndWorstOfTheDraftsAreDrawnAgain) {
  const WrapperBench b;
  ScreeningConfig c;
  c.candidates = 16;
  MetricSums metrics;
  const auto drawn = [&](std::int64_t group) {
    return b.problem.reward->score(
        screened_end_points(b.context(), *b.counted, 3, 0, 4 * group, group, {}, c, metrics), {});
  };
  c.draft_steps = 12;  // drafts are full rollouts
  const at::Tensor all = drawn(16).view({4, 16});
  const at::Tensor kept = drawn(4).view({4, 4});
  const at::Tensor order = std::get<0>(all.sort(1, /*descending=*/true));
  EXPECT_TRUE(at::allclose(kept, at::cat({order.narrow(1, 0, 2), order.narrow(1, 14, 2)}, 1)));
  EXPECT_NEAR(metrics.averages().at("draft_correlation"), 1, 1e-6);
  // Cheap drafts rank nearly alike, and cost what is documented.
  c.draft_steps = 3;
  MetricSums cheap;
  b.counted->reset();
  screened_end_points(b.context(), *b.counted, 3, 0, 16, 4, {}, c, cheap);
  EXPECT_EQ(b.counted->count(), 64 * 3 + 16 * 12);
  EXPECT_GT(cheap.averages().at("draft_correlation"), 0.9);
  EXPECT_LT(cheap.averages().at("draft_correlation"), 1 - 1e-6);
  test::expect_error(ErrorKind::kConfig, "less than method.group", [&] {
    c.candidates = 2;
    screened_end_points(b.context(), *b.counted, 3, 0, 8, 4, {}, c, cheap);
  });
  test::expect_error(ErrorKind::kConfig, "no multiple", [&] {
    c.candidates = 8;
    screened_end_points(b.context(), *b.counted, 3, 0, 6, 4, {}, c, cheap);
  });
  // As an option of a method: advantages belong to what was drawn again.
  EndpointConfig config;
  config.advantage = {4, "group", 5};
  config.screening = {16, 3};
  EndpointRegression method("diffusion-nft", config);
  const Batch batch = method.collect(b.context(), 3, 0, 16, true);
  EXPECT_TRUE(at::allclose(batch.advantages, advantages(batch.rewards, config.advantage)));
  EXPECT_GT(batch.rewards.std().item<double>(),
            1.3 * b.problem.reward
                      ->score(screened_end_points(b.context(), *b.counted, 3, 0, 16, 16, {},
                                                  {16, 3}, cheap),
                              {})
                      .std()
                      .item<double>());
}

}  // namespace tiltflow
