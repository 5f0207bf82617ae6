// Averaged weights.
#include "tiltflow/train/optimizer.h"
#include "tests/support.h"

namespace tiltflow {

// The decay is (1 + n)/(10 + n) until it reaches the configured one: 1/10, 2/11, then 0.25.
TEST(train_average, StartsQuicklyThenKeepsItsDecay) {
  ParameterSet weights;
  weights.add("w", at::zeros({1}, at::kDouble));
  WeightAverage average(weights, 0.25);
  double expected = 0;
  for (const auto& [updates, decay] : std::vector<std::pair<std::int64_t, double>>{
           {0, 1.0 / 10}, {1, 2.0 / 11}, {2, 0.25}, {50, 0.25}}) {
    at::Tensor w = weights.at("w");
    w.fill_(1.0 + static_cast<double>(updates));
    average.update(updates);
    expected = decay * expected + (1 - decay) * w.item<double>();
    EXPECT_NEAR(average.values().at("w").item<double>(), expected, 1e-12) << updates;
  }
}

}  // namespace tiltflow
