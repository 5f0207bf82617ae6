// Orthogonal maps of noise: Q^T Q = I, so that Q eps is N(0, I) again for every fixed Q. One
// interface, six parameterisations. Rows are vectors: a row r becomes r Q^T. Several maps can be
// applied at once (groups): raw [G, ...], rows [G, R, D].
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <string>
#include <vector>

#include "tiltflow/tensor/random.h"

namespace tiltflow {

class OrthogonalMap {
 public:
  virtual ~OrthogonalMap() = default;
  virtual std::int64_t dimension() const = 0;
  virtual std::vector<std::int64_t> parameter_shape() const = 0;  // raw parameters of one map
  // Parameters of maps at (or, for expm and cayley, within 1e-4 of) the identity; map first+i
  // depends on (seed, i) alone. [n, parameters...]
  virtual at::Tensor initial(const RandomStreams& streams, std::int64_t first,
                             std::int64_t n) const = 0;
  // r -> r Q^T and r -> r Q. Differentiable in both arguments. G of raw is that of rows, or 1
  // (shared).
  virtual at::Tensor apply(const at::Tensor& raw, const at::Tensor& rows) const = 0;
  virtual at::Tensor apply_transposed(const at::Tensor& raw, const at::Tensor& rows) const = 0;
  at::Tensor matrix(const at::Tensor& raw) const;  // Q, [G, D, D]
};

struct OrthogonalConfig {
  std::string kind = "cayley";   // expm, cayley, householder, block, givens, butterfly
  std::int64_t reflections = 8;  // householder: even numbers start at the identity
  std::int64_t blocks = 4;       // block: blocks of size D / blocks, each an exponential
  std::int64_t layers = 0;  // givens: layers of D/2 disjoint rotations; 0 = D - 1, which reaches
                            // every rotation. butterfly: log2 D
};
const std::vector<std::string>& orthogonal_kinds();
// expm: Q = exp(S); cayley: Q = (I - S)^-1 (I + S), S = raw - raw^T; householder: a product of
// reflections; block: block-diagonal; givens, butterfly: layers of plane rotations by angles.
// Throws kConfig when the dimension does not fit. Cost for R rows: expm ~10 D^3, cayley one LU and
// its solves (reused in backward), householder 4 k D R, givens 4 L D R / 2.
std::unique_ptr<OrthogonalMap> make_orthogonal_map(const OrthogonalConfig& config,
                                                   std::int64_t dimension);

// One vector: the orbit of eps under rotations is the sphere of radius |eps|. u [N, D] any
// direction, eps [N, D] -> |eps| u / |u|.
at::Tensor on_sphere(const at::Tensor& u, const at::Tensor& eps);
// The rotation that turns eps into z (|eps| = |z|) and leaves everything orthogonal to both alone:
// with unit vectors a, b, Q = I - (a+b)(a+b)^T/(1 + a.b) + 2 b a^T, the product of the reflections
// in (b - a, then b); a reflection when b is near -a. [N, D, D]
at::Tensor rotation_between(const at::Tensor& eps, const at::Tensor& z);

// Q after a step down the gradient dL/dQ along the geodesic exp(-eta Omega) Q, Omega = G Q^T - Q
// G^T, with eta such that the largest rotation angle is `angle` (radians). [G, D, D] both. Stays
// orthogonal to rounding.
at::Tensor riemannian_step(const at::Tensor& q, const at::Tensor& gradient, double angle);

// |Q^T Q - I|_F, smallest, largest and mean singular value, |det|; of one matrix, in double
// precision.
struct Orthogonality {
  double error = 0;
  double sv_min = 0;
  double sv_max = 0;
  double sv_mean = 0;
  double det_abs = 0;
};
Orthogonality orthogonality(const at::Tensor& q);

}  // namespace tiltflow
