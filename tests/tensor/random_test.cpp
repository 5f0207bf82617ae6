#include "tiltflow/tensor/random.h"
#include "tests/support.h"

namespace tiltflow {

TEST(tensor_random, SamplesDoNotDependOnTheirBatch) {
  const RandomStreams streams(7);
  const at::Tensor all = streams.normal(Purpose::kPrior, 3, 1, 0, 10, {5, 3});
  EXPECT_TRUE(at::equal(all.narrow(0, 4, 3), streams.normal(Purpose::kPrior, 3, 1, 4, 3, {5, 3})));
  EXPECT_FALSE(at::equal(all, streams.normal(Purpose::kPrior, 4, 1, 0, 10, {5, 3})));
  EXPECT_FALSE(at::equal(all, streams.normal(Purpose::kTransition, 3, 1, 0, 10, {5, 3})));
  EXPECT_FALSE(at::equal(all, streams.normal(Purpose::kPrior, 3, 2, 0, 10, {5, 3})));
  EXPECT_FALSE(at::equal(all, RandomStreams(8).normal(Purpose::kPrior, 3, 1, 0, 10, {5, 3})));
}

TEST(tensor_random, MomentsOfTheNormal) {
  const at::Tensor x =
      RandomStreams(1).normal(Purpose::kPrior, 0, 0, 0, 2000, {500}, at::kDouble);  // 10^6 numbers
  EXPECT_NEAR(x.mean().item<double>(), 0, 5e-3);             // 5 standard errors
  EXPECT_NEAR(x.square().mean().item<double>(), 1, 7.1e-3);  // s.e. sqrt(2)/1000
  EXPECT_NEAR(x.pow(4).mean().item<double>(), 3, 0.05);      // s.e. sqrt(96)/1000
  EXPECT_NEAR((x.select(1, 0) * x.select(1, 1)).mean().item<double>(), 0, 0.12);
}

TEST(tensor_random, PermutationsAndSubsets) {
  const RandomStreams streams(3);
  std::vector<std::int64_t> order = streams.permutation(Purpose::kData, 0, 50);
  EXPECT_NE(order, streams.permutation(Purpose::kData, 1, 50));
  std::sort(order.begin(), order.end());
  for (std::int64_t i = 0; i < 50; ++i) EXPECT_EQ(order[static_cast<std::size_t>(i)], i);
  const auto some = streams.choose(Purpose::kSubset, 0, 10, 20, 4);
  ASSERT_EQ(some.size(), 4u);
  EXPECT_TRUE(std::is_sorted(some.begin(), some.end()));
  EXPECT_GE(some.front(), 10);
  EXPECT_LT(some.back(), 20);
}

// Words of an implementation in Python that reproduces the published vectors of Philox4x32-10.
TEST(tensor_random, StreamsAreThoseOfPhilox) {
  const RandomStreams streams(0x299f31d0a4093822ULL);
  const at::Tensor found = streams.uniform(Purpose::kPrior, 7, 5, 1, {5}, at::kDouble)[0] * 0x1p24;
  const at::Tensor words =
      at::tensor({0x1552e3, 0x024e63, 0x7ec28e, 0x95821e, 0x861ffb}, at::kDouble);
  EXPECT_TRUE(at::equal(found, words)) << found;
}

}  // namespace tiltflow
