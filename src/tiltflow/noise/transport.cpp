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

}  // namespace

std::vector<std::int64_t> linear_assignment(const at::Tensor& cost) {
  const at::Tensor matrix = checked(cost);
  const std::size_t n = static_cast<std::size_t>(matrix.size(0));
  const std::size_t m = static_cast<std::size_t>(matrix.size(1));
  const double* c = matrix.const_data_ptr<double>();
  constexpr std::size_t kNone = std::numeric_limits<std::size_t>::max();
  // Prices of columns by column reduction (square problems only: a column left free must keep price
  // 0), then one shortest augmenting path per row left over.
  std::vector<double> price(m, 0), slack(m);
  std::vector<std::size_t> row_of(m, kNone), column_of(n, kNone), before(m);
  if (n == m) {
    for (std::size_t j = m; j-- > 0;) {
      std::size_t best = 0;
      for (std::size_t i = 1; i < n; ++i) {
        if (c[i * m + j] < c[best * m + j]) best = i;
      }
      price[j] = c[best * m + j];
      if (column_of[best] == kNone) {
        column_of[best] = j;
        row_of[j] = best;
      }
    }
  }
  std::vector<std::size_t> order(m);
  for (std::size_t start = 0; start < n; ++start) {
    if (column_of[start] != kNone) continue;
    // Dijkstra over columns; order[0, done) are final, [done, front) have the least distance, the
    // rest is open.
    for (std::size_t j = 0; j < m; ++j) {
      slack[j] = c[start * m + j] - price[j];
      before[j] = start;
      order[j] = j;
    }
    std::size_t done = 0;
    std::size_t front = 0;
    std::size_t last = kNone;
    double least = 0;
    while (last == kNone) {
      if (done == front) {
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
        for (std::size_t k = done; k < front && last == kNone; ++k) {
          if (row_of[order[k]] == kNone) last = order[k];
        }
        if (last != kNone) break;
      }
      const std::size_t column = order[done++];
      const std::size_t row = row_of[column];
      const double offset = c[row * m + column] - price[column] - least;
      for (std::size_t k = front; k < m; ++k) {
        const std::size_t j = order[k];
        const double distance = c[row * m + j] - price[j] - offset;
        if (distance >= slack[j]) continue;
        slack[j] = distance;
        before[j] = row;
        if (distance > least) continue;
        if (row_of[j] == kNone) {
          last = j;
          break;
        }
        std::swap(order[k], order[front++]);
      }
    }
    for (std::size_t k = 0; k < done; ++k) price[order[k]] += slack[order[k]] - least;
    for (std::size_t j = last;;) {
      const std::size_t row = before[j];
      row_of[j] = row;
      std::swap(column_of[row], j);
      if (row == start) break;
    }
  }
  return {column_of.begin(), column_of.end()};
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
