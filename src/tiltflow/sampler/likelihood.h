// Log-likelihood of data under the probability-flow ODE (Song et al. 2021, eq. 39; SiT section 3):
//   log p(x_1) = log N(z) - int_0^1 div v(x_t, t) dt,   x_t from x_1 back to z = x_0.
// State and divergence are integrated together, so an adaptive solver controls the error of both.
#pragma once

#include <functional>

#include "tiltflow/sampler/ode.h"
#include "tiltflow/tensor/random.h"

namespace tiltflow {

// div v of every sample, [N], and v itself.
struct Divergence {
  at::Tensor velocity, divergence;
};
using DivergenceRule = std::function<Divergence(const VelocityField& field, const at::Tensor& x,
                                                const at::Tensor& t, const Condition& condition)>;

// Hutchinson's estimate with fixed probes [P, N, ...]: mean of e . (J^T e). Cost: P vector-Jacobian
// products.
DivergenceRule hutchinson(at::Tensor probes);
// The trace itself. Cost: one vector-Jacobian product per dimension, `rows` samples at a time.
DivergenceRule exact_divergence(std::int64_t rows = 256);
// Random signs of samples first.., keyed by (seed, probe): [P, n, ...].
at::Tensor rademacher(const RandomStreams& streams, std::int64_t probes, std::int64_t first,
                      std::int64_t n, at::IntArrayRef shape);

struct Likelihood {
  at::Tensor log_prob;  // [N] nats, density in the space of x
  at::Tensor latent;    // z, like x
  int evaluations = 0;  // of velocity and divergence
};
// `grid` runs from data (front, about 1) to noise (back, about 0).
Likelihood log_likelihood(const VelocityField& field, const at::Tensor& x,
                          const std::vector<double>& grid, const Condition& condition,
                          const DivergenceRule& divergence, const OdeOptions& options = {});

}  // namespace tiltflow
