#include "tiltflow/noise/transport.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

at::Tensor checked(const at::Tensor& cost) {
  if (cost.dim() != 2 || cost.size(0) > cost.size(1)) {
    fail(ErrorKind::kFailure,
         "an assignment needs a cost matrix with at least as many columns as rows");
  }
  const at::Tensor c = cost.to(at::kDouble).contiguous();
  if (!at::isfinite(c).all().item<bool>()) {
    fail(ErrorKind::kNonFinite, "the costs of an assignment are not finite");
  }
  return c;
}

// Shortest augmenting paths over the rows of a cost matrix [n, m] with n <= m.
class AugmentingPaths {
 public:
  AugmentingPaths(const double* cost, std::size_t n, std::size_t m)
      : cost(cost),
        n(n),
        m(m),
        price(m, 0),
        slack(m),
        row_of(m, kNone),
        column_of(n, kNone),
        before(m),
        order(m) {}

  // Prices of columns by column reduction: for square problems only, since a column that stays free
  // must keep price 0.
  void reduce_columns() {
    for (std::size_t j = m; j-- > 0;) {
      std::size_t best = 0;
      for (std::size_t i = 1; i < n; ++i) {
        if (cost[i * m + j] < cost[best * m + j]) best = i;
      }
      price[j] = cost[best * m + j];
      if (column_of[best] == kNone) {
        column_of[best] = j;
        row_of[j] = best;
      }
    }
  }

  bool matched(std::size_t row) const { return column_of[row] != kNone; }

  // Matches one more row: Dijkstra over columns until one of them is free.
  void augment(std::size_t start) {
    for (std::size_t j = 0; j < m; ++j) {
      slack[j] = cost[start * m + j] - price[j];
      before[j] = start;
      order[j] = j;
    }
    done = 0;
    front = 0;
    least = 0;
    std::size_t last = kNone;
    while (last == kNone) {
      if (done == front) last = find_nearest();
      if (last == kNone) last = pass_column();
    }
    for (std::size_t k = 0; k < done; ++k) price[order[k]] += slack[order[k]] - least;
    for (std::size_t j = last;;) {
      const std::size_t row = before[j];
      row_of[j] = row;
      std::swap(column_of[row], j);
      if (row == start) break;
    }
  }

  std::vector<std::int64_t> columns() const { return {column_of.begin(), column_of.end()}; }

 private:
  static constexpr std::size_t kNone = std::numeric_limits<std::size_t>::max();

  // Moves the open columns of least distance to the front; a free one among them, or kNone.
  std::size_t find_nearest() {
    least = slack[order[front]];
    std::size_t end = front;
    for (std::size_t k = front; k < m; ++k) {
      const std::size_t j = order[k];
      if (slack[j] > least) continue;
      if (slack[j] < least) {
        end = front;
        least = slack[j];
      }
      std::swap(order[k], order[end++]);
    }
    front = end;
    for (std::size_t k = done; k < front; ++k) {
      if (row_of[order[k]] == kNone) return order[k];
    }
    return kNone;
  }

  // Shortens the ways through the next final column; a free column at the least distance, or kNone.
  std::size_t pass_column() {
    const std::size_t column = order[done++];
    const std::size_t row = row_of[column];
    const double offset = cost[row * m + column] - price[column] - least;
    for (std::size_t k = front; k < m; ++k) {
      const std::size_t j = order[k];
      const double distance = cost[row * m + j] - price[j] - offset;
      if (distance >= slack[j]) continue;
      slack[j] = distance;
      before[j] = row;
      if (distance > least) continue;
      if (row_of[j] == kNone) return j;
      std::swap(order[k], order[front++]);
    }
    return kNone;
  }

  const double* cost;
  std::size_t n, m;
  std::vector<double> price, slack;
  std::vector<std::size_t> row_of, column_of, before;
  // order[0, done) are final, [done, front) have the least distance, the rest is open.
  std::vector<std::size_t> order;
  std::size_t done = 0;
  std::size_t front = 0;
  double least = 0;
};

}  // namespace

std::vector<std::int64_t> linear_assignment(const at::Tensor& cost) {
  const at::Tensor matrix = checked(cost);
  const std::size_t n = static_cast<std::size_t>(matrix.size(0));
  const std::size_t m = static_cast<std::size_t>(matrix.size(1));
  AugmentingPaths paths(matrix.const_data_ptr<double>(), n, m);
  if (n == m) paths.reduce_columns();
  for (std::size_t row = 0; row < n; ++row) {
    if (!paths.matched(row)) paths.augment(row);
  }
  return paths.columns();
}

std::vector<std::int64_t> sinkhorn_assignment(const at::Tensor& cost, const SinkhornOptions& o) {
  const at::Tensor c = checked(cost);
  const std::int64_t n = c.size(0);
  const std::int64_t m = c.size(1);
  const double scale = std::max(1e-300, c.abs().mean().item<double>()) * o.epsilon;
  const at::Tensor kernel = c / -scale;
  at::Tensor f = at::zeros({n, 1}, at::kDouble);
  at::Tensor g = at::zeros({1, m}, at::kDouble);
  for (std::int64_t i = 0; i < o.iterations; ++i) {
    f = -std::log(static_cast<double>(n)) - at::logsumexp(kernel + g, {1}, true);
    g = -std::log(static_cast<double>(m)) - at::logsumexp(kernel + f, {0}, true);
  }
  const at::Tensor order = (kernel + f + g).flatten().argsort(-1, /*descending=*/true);
  const std::int64_t* entries = order.const_data_ptr<std::int64_t>();
  std::vector<std::int64_t> out(static_cast<std::size_t>(n), -1);
  std::vector<bool> used(static_cast<std::size_t>(m));
  std::int64_t left = n;
  for (std::int64_t k = 0; left > 0; ++k) {
    const auto row = static_cast<std::size_t>(entries[k] / m);
    const auto column = static_cast<std::size_t>(entries[k] % m);
    if (out[row] >= 0 || used[column]) continue;
    out[row] = static_cast<std::int64_t>(column);
    used[column] = true;
    --left;
  }
  return out;
}

double assignment_cost(const at::Tensor& cost, const std::vector<std::int64_t>& columns) {
  return cost.to(at::kDouble)
      .gather(1, at::tensor(columns, at::kLong).unsqueeze(1))
      .sum()
      .item<double>();
}

}  // namespace tiltflow
