// Assignment problems: which noise goes to which target at the least total cost.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace tiltflow {

// cost [n, m], n <= m, finite -> the column of every row; each column is used at most once and the
// sum of costs is minimal. Shortest augmenting paths (Jonker & Volgenant 1987), O(n^2 m), double
// precision.
std::vector<std::int64_t> linear_assignment(const at::Tensor& cost);

struct SinkhornOptions {
  double epsilon = 0.01;  // entropy, as a share of the mean cost
  std::int64_t iterations = 500;
};
// The entropic plan of uniform marginals (log domain), rounded to an assignment: pairs by falling
// mass, each row and column once.
std::vector<std::int64_t> sinkhorn_assignment(const at::Tensor& cost,
                                              const SinkhornOptions& options = {});

double assignment_cost(const at::Tensor& cost,
                       const std::vector<std::int64_t>& columns);  // the sum

}  // namespace tiltflow
