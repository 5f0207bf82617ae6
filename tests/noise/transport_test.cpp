#include <algorithm>
#include <numeric>

#include "tests/noise/toy_generator.h"
#include "tests/support.h"
#include "tiltflow/noise/transport.h"

namespace tiltflow {
namespace {

using test::kAssignStreams;

}  // namespace

TEST(noise_transport, EqualsBruteForceAndIsAPermutation) {
  for (std::uint32_t key = 0; key < 20; ++key) {
    const std::int64_t n = 1 + key % 7;
    const std::int64_t m = n + key % 3;
    const at::Tensor cost =
        kAssignStreams.uniform(Purpose::kProbe, key, 0, n, {m}, at::kDouble)
            .mul(key % 2 ? 1 : 4)
            .floor()
            .add(key % 2 ? kAssignStreams.uniform(Purpose::kProbe, key + 99, 0, n, {m}, at::kDouble)
                         : at::zeros({n, m}, at::kDouble));  // with and without ties
    std::vector<std::int64_t> columns(static_cast<std::size_t>(m));
    std::iota(columns.begin(), columns.end(), 0);
    double best = 1e300;
    do best = std::min(best, assignment_cost(cost, {columns.begin(), columns.begin() + n}));
    while (std::next_permutation(columns.begin(), columns.end()));
    const std::vector<std::int64_t> found = linear_assignment(cost);
    std::vector<std::int64_t> sorted = found;
    std::sort(sorted.begin(), sorted.end());
    EXPECT_EQ(std::unique(sorted.begin(), sorted.end()), sorted.end());
    EXPECT_NEAR(assignment_cost(cost, found), best, 1e-12) << n << " x " << m;
  }
}

TEST(noise_transport, LargeProblemsAndSinkhorn) {
  const at::Tensor a = kAssignStreams.normal(Purpose::kProbe, 1, 0, 0, 300, {5}, at::kDouble);
  const at::Tensor order =
      at::tensor(kAssignStreams.permutation(Purpose::kProbe, 2, 300), at::kLong);
  const at::Tensor cost =
      at::cdist(a, a.index_select(0, order) + 1e-4);  // the optimum undoes the shuffle
  const std::vector<std::int64_t> found = linear_assignment(cost);
  for (std::int64_t i = 0; i < 300; ++i) {
    EXPECT_EQ(order[found[static_cast<std::size_t>(i)]].item<std::int64_t>(), i);
  }
  const at::Tensor random = kAssignStreams.uniform(Purpose::kProbe, 3, 0, 64, {64}, at::kDouble);
  const double exact = assignment_cost(random, linear_assignment(random));
  const double approximate = assignment_cost(random, sinkhorn_assignment(random));
  const double identity = random.trace().item<double>();
  EXPECT_LE(exact, approximate);
  EXPECT_LT(approximate, exact + 0.3 * (identity - exact));
  test::expect_error(ErrorKind::kNonFinite, "not finite",
                     [] { linear_assignment(at::full({2, 2}, NAN)); });
}

// Squared distances on a line: the optimum pairs the sorted points, and rows compete for the same
// columns all the time.
TEST(noise_transport, PointsOnALineArePairedInOrder) {
  for (std::uint32_t key = 0; key < 5; ++key) {
    const at::Tensor points = kAssignStreams.uniform(Purpose::kProbe, key, 0, 2, {64}, at::kDouble);
    const at::Tensor cost = (points[0].unsqueeze(1) - points[1].unsqueeze(0)).square();
    const at::Tensor sorted = std::get<0>(points.sort(1));
    const double best = (sorted[0] - sorted[1]).square().sum().item<double>();
    EXPECT_NEAR(assignment_cost(cost, linear_assignment(cost)), best, 1e-12);
  }
}

}  // namespace tiltflow
