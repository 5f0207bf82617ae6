#include <atomic>
#include <cstdlib>

#include "tests/support.h"
#include "tiltflow/tensor/activation_checkpoint.h"
#include "tiltflow/tensor/loss_report.h"
#include "tiltflow/tensor/parallel.h"
#include "tiltflow/tensor/precision.h"
#include "tiltflow/tensor/process_group.h"
#include "tiltflow/tensor/random.h"

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

TEST(tensor_checkpoint, GradientsEqualThePlainOnes) {
  const at::Tensor x = at::randn({4, 5}, at::kDouble).set_requires_grad(true);
  const at::Tensor w = at::randn({5, 5}, at::kDouble).set_requires_grad(true);
  const at::Tensor constant = at::randn({5}, at::kDouble);
  int calls = 0;
  const TensorFunction f = [&](const std::vector<at::Tensor>& in) {
    ++calls;
    return at::tanh(at::matmul(in[0], in[1]) + in[2]).square();
  };
  const auto plain = torch::autograd::grad({f({x, w, constant}).sum()}, {x, w});
  calls = 0;
  const auto saved = torch::autograd::grad({checkpoint(f, {x, w, constant}).sum()}, {x, w});
  EXPECT_EQ(calls, 2);
  EXPECT_TRUE(at::equal(plain[0], saved[0]));
  EXPECT_TRUE(at::equal(plain[1], saved[1]));
}

TEST(tensor_parallel, RunsEverythingOnceAndRethrows) {
  set_thread_policy({4, 1});
  std::vector<std::atomic<int>> hits(100);
  parallel_for(100, [&](std::int64_t i) { ++hits[static_cast<std::size_t>(i)]; });
  for (const auto& hit : hits) EXPECT_EQ(hit.load(), 1);
  EXPECT_THROW(parallel_for(10,
                            [](std::int64_t i) {
                              if (i == 5) fail(ErrorKind::kFailure, "x");
                            }),
               Error);
  const at::NoGradGuard no_grad;
  std::atomic<bool> grad{false};
  parallel_for(8, [&](std::int64_t) {
    if (at::GradMode::is_enabled()) grad = true;
  });
  EXPECT_FALSE(grad) << "workers must inherit the caller's grad mode";
  set_thread_policy({1, 1});
}

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

TEST(tensor_parameters, MisfitsAreListedTogether) {
  ParameterSet a, b;
  a.add("x", at::zeros({2}));
  a.add("y", at::zeros({3}));
  b.add("x", at::zeros({4}));
  b.add("z", at::zeros({1}));
  try {
    require_fit(a, b, "file");
    FAIL();
  } catch (const Error& error) {
    for (const char* part :
         {"shape of x: expected [2], found [4]", "missing: y [3]", "unexpected: z [1]"}) {
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    }
  }
}

TEST(tensor_metrics, TravelAsTextExactly) {
  MetricSums sums;
  sums.add("loss", 0.1 + 0.2, 3);
  sums.add("a name with spaces", -1e-300, 1e17);
  const MetricSums back = MetricSums::from_text(sums.text());
  EXPECT_EQ(back.averages(), sums.averages());
  EXPECT_EQ(back.weight_of("a name with spaces"), 1e17);
  EXPECT_EQ(sums.take("loss"), 0.1 + 0.2);
  EXPECT_EQ(sums.weight_of("loss"), 0);
}

TEST(tensor_processes, TheEnvironmentIsReadByLauncher) {
  const auto with = [](std::initializer_list<std::pair<const char*, const char*>> variables) {
    for (const char* name :
         {"WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK",
          "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_NTASKS", "MASTER_ADDR", "MASTER_PORT"}) {
      ::unsetenv(name);
    }
    for (const auto& [name, value] : variables) ::setenv(name, value, 1);
    return world_from_environment();
  };
  EXPECT_EQ(with({{"SLURM_NTASKS", "4"}, {"SLURM_PROCID", "0"}}).size, 1)
      << "a batch script is one process";
  EXPECT_EQ(with({{"SLURM_STEP_NUM_TASKS", "4"}, {"SLURM_PROCID", "3"}}).rank, 3);
  const WorldInfo torchrun = with({{"WORLD_SIZE", "2"},
                                   {"RANK", "1"},
                                   {"SLURM_STEP_NUM_TASKS", "1"},
                                   {"SLURM_PROCID", "0"},
                                   {"MASTER_PORT", "1234"}});
  EXPECT_EQ(torchrun.rank, 1);
  EXPECT_EQ(torchrun.size, 2);
  EXPECT_EQ(torchrun.port, 1234);
  test::expect_error(ErrorKind::kConfig, "this process's rank = '2'",
                     [&] { with({{"WORLD_SIZE", "2"}, {"RANK", "2"}}); });
  test::expect_error(ErrorKind::kConfig, "WORLD_SIZE = 2 and RANK = 0, but neither",
                     [&] { with({{"WORLD_SIZE", "2"}, {"RANK", "0"}}); });
  EXPECT_EQ(with({{"WORLD_SIZE", "1"}, {"RANK", "0"}}).size, 1) << "one process needs no address";
  EXPECT_EQ(with({{"WORLD_SIZE", "2"}}).size, 1) << "a size without a rank is nobody's launcher";
  EXPECT_EQ(with({}).size, 1);
}

}  // namespace tiltflow
