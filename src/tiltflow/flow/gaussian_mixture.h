// Gaussian mixtures in any dimension with full covariances: the closed-form ground truth of the
// project. p = sum_i pi_i N(m_i, S_i) gives exactly, for any path: the velocity of the flow, its
// Jacobian products, the tilted law under linear and quadratic rewards (again a mixture), its
// normaliser, the value function and the optimal control. All tensors are fp64. Derivations:
// docs/mathematics.md.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>

#include "tiltflow/flow/path.h"
#include "tiltflow/flow/velocity_field.h"
#include "tiltflow/tensor/random.h"

namespace tiltflow {

struct GaussianMixture {
  at::Tensor weights;      // [M], sums to 1
  at::Tensor means;        // [M, d]
  at::Tensor covariances;  // [M, d, d], symmetric positive definite
  std::int64_t components() const;
  std::int64_t dimension() const;
};
// Isotropic convenience: weights [M], means [M, d], one standard deviation for all.
GaussianMixture isotropic_mixture(at::Tensor weights, at::Tensor means, double deviation);
// Throws kFailure unless weights are positive with sum 1 and covariances symmetric positive
// definite.
void validate(const GaussianMixture& mixture);

at::Tensor sample(const GaussianMixture& mixture, const RandomStreams& streams, std::uint32_t step,
                  std::int64_t n);                                            // [n, d]
at::Tensor log_density(const GaussianMixture& mixture, const at::Tensor& x);  // [N, d] -> [N]
at::Tensor responsibilities(const GaussianMixture& mixture,
                            const at::Tensor& x);       // [N, d] -> [N, M]
at::Tensor mean(const GaussianMixture& mixture);        // [d]
at::Tensor covariance(const GaussianMixture& mixture);  // [d, d]

// r(x) = linear . x - 1/2 (x - center)^T curvature (x - center); curvature may be indefinite while
// S^-1 + Q > 0.
struct QuadraticForm {
  at::Tensor linear;     // [d]
  at::Tensor curvature;  // [d, d]
  at::Tensor center;     // [d]
};
QuadraticForm linear_form(at::Tensor slope);
QuadraticForm quadratic_form(at::Tensor curvature, at::Tensor center);
at::Tensor evaluate(const QuadraticForm& form, const at::Tensor& x);  // [N, d] -> [N]

struct TiltedMixture {
  GaussianMixture law;                                   // p* proportional to p exp(r)
  double log_z;                                          // log E_p exp(r)
  double expected_reward;                                // E_{p*} r
  double kl() const { return expected_reward - log_z; }  // KL(p* || p), exact
};
TiltedMixture tilt(const GaussianMixture& base, const QuadraticForm& reward);

// The flow-matching velocity of a mixture under a path; vjp in closed form (the Jacobian is
// symmetric).
class MixtureField final : public VelocityField {
 public:
  MixtureField(GaussianMixture mixture, std::shared_ptr<const Path> path);
  at::Tensor velocity(const at::Tensor& x, const at::Tensor& t,
                      const Condition& condition) const override;
  Vjp vjp_of(const at::Tensor& x, const at::Tensor& t, const Condition& condition,
             const Cotangent& cotangent) const override;
  const GaussianMixture& mixture() const { return mixture_; }
  const Path& path() const { return *path_; }

 private:
  struct Posterior;  // per component: responsibilities, posterior means, C^-1 (x - alpha m)
  Posterior posterior(const at::Tensor& x, const std::vector<PathPoint>& points) const;
  GaussianMixture mixture_;
  std::shared_ptr<const Path> path_;
  at::Tensor eigenvalues_, eigenvectors_;  // [M, d], [M, d, d]: S_i = U diag(l) U^T
};

// V(x, t) = -log E[exp(r(X_1)) | X_t = x] and u*(x, t) = -sigma grad V with sigma^2 = 2 eta; x [N,
// d], t in (0, 1).
at::Tensor value_function(const GaussianMixture& base, const Path& path,
                          const QuadraticForm& reward, const at::Tensor& x, double t);
at::Tensor optimal_control(const GaussianMixture& base, const Path& path,
                           const QuadraticForm& reward, const at::Tensor& x, double t);

}  // namespace tiltflow
