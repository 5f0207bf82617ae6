#include "tiltflow/flow/gaussian_mixture.h"

#include <cmath>
#include <numbers>

#include "tiltflow/base/error.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

const double kLogTwoPi = std::log(2 * std::numbers::pi);

// log N(x; m_i, S_i) for every sample and component: [N, d] -> [N, M]
at::Tensor component_log_density(const GaussianMixture& p, const at::Tensor& x) {
  const at::Tensor chol = at::linalg_cholesky(p.covariances);  // [M, d, d]
  const at::Tensor y = x.unsqueeze(1) - p.means;               // [N, M, d]
  const at::Tensor z =
      at::linalg_solve_triangular(chol, y.permute({1, 2, 0}), /*upper=*/false);  // [M, d, N]
  const at::Tensor log_det = chol.diagonal(0, 1, 2).log().sum(1);                // [M]
  return -0.5 * z.square().sum(1).t() - log_det -
         0.5 * static_cast<double>(p.dimension()) * kLogTwoPi;
}

}  // namespace

std::int64_t GaussianMixture::components() const { return means.size(0); }
std::int64_t GaussianMixture::dimension() const { return means.size(1); }

GaussianMixture isotropic_mixture(at::Tensor weights, at::Tensor means, double deviation) {
  const std::int64_t d = means.size(1);
  const at::Tensor covariance =
      at::eye(d, at::kDouble).mul(deviation * deviation).expand({means.size(0), d, d}).contiguous();
  return {weights.to(at::kDouble), means.to(at::kDouble), covariance};
}

void validate(const GaussianMixture& p) {
  const bool shapes =
      p.weights.dim() == 1 && p.means.dim() == 2 && p.covariances.dim() == 3 &&
      p.means.size(0) == p.weights.size(0) && p.covariances.size(0) == p.weights.size(0) &&
      p.covariances.size(1) == p.means.size(1) && p.covariances.size(2) == p.means.size(1);
  if (!shapes) {
    fail(ErrorKind::kFailure, "mixture: expected weights [M], means [M, d], covariances [M, d, d]");
  }
  if ((p.weights <= 0).any().item<bool>() || std::abs(p.weights.sum().item<double>() - 1) > 1e-9) {
    fail(ErrorKind::kFailure, "mixture: weights must be positive and sum to 1");
  }
  const bool symmetric = at::allclose(p.covariances, p.covariances.transpose(1, 2), 1e-9, 1e-12);
  if (!symmetric || (at::linalg_eigvalsh(p.covariances) <= 0).any().item<bool>()) {
    fail(ErrorKind::kFailure, "mixture: covariances must be symmetric positive definite");
  }
}

at::Tensor sample(const GaussianMixture& p, const RandomStreams& streams, std::uint32_t step,
                  std::int64_t n) {
  const at::Tensor u = streams.uniform(Purpose::kExact, step, 0, n, {}, at::kDouble);
  const at::Tensor which =
      at::searchsorted(p.weights.cumsum(0), u, false, true).clamp_max(p.components() - 1);
  const at::Tensor z = streams.normal(Purpose::kExact, step, 1, 0, n, {p.dimension()}, at::kDouble);
  const at::Tensor chol = at::linalg_cholesky(p.covariances).index_select(0, which);
  return p.means.index_select(0, which) + at::matmul(chol, z.unsqueeze(2)).squeeze(2);
}

at::Tensor log_density(const GaussianMixture& p, const at::Tensor& x) {
  return (component_log_density(p, x) + p.weights.log()).logsumexp(1);
}
at::Tensor responsibilities(const GaussianMixture& p, const at::Tensor& x) {
  return (component_log_density(p, x) + p.weights.log()).softmax(1);
}
at::Tensor mean(const GaussianMixture& p) { return at::matmul(p.weights, p.means); }
at::Tensor covariance(const GaussianMixture& p) {
  const at::Tensor centered = p.means - mean(p);
  const at::Tensor between = centered.unsqueeze(2) * centered.unsqueeze(1);  // [M, d, d]
  return ((p.covariances + between) * p.weights.view({-1, 1, 1})).sum(0);
}

QuadraticForm linear_form(at::Tensor slope) {
  const at::Tensor w = slope.to(at::kDouble);
  return {w, at::zeros({w.size(0), w.size(0)}, at::kDouble), at::zeros_like(w)};
}
QuadraticForm quadratic_form(at::Tensor curvature, at::Tensor center) {
  const at::Tensor c = center.to(at::kDouble);
  return {at::zeros_like(c), curvature.to(at::kDouble), c};
}
at::Tensor evaluate(const QuadraticForm& form, const at::Tensor& x) {
  const at::Tensor y = x - form.center.to(x.scalar_type());
  return at::matmul(x, form.linear.to(x.scalar_type())) -
         0.5 * (at::matmul(y, form.curvature.to(x.scalar_type())) * y).sum(1);
}

namespace {

// For x ~ N(m, S), r as above: tilted mean and covariance, and log E exp(r). means [.., d], S [..,
// d, d].
struct GaussianTilt {
  at::Tensor means, covariances, log_z;
};
GaussianTilt tilt_gaussian(const at::Tensor& means, const at::Tensor& S, const QuadraticForm& r) {
  const std::int64_t d = means.size(-1);
  const at::Tensor identity = at::eye(d, at::kDouble);
  // exp(r) = exp(const + b.x - x^T Q x / 2) with b = linear + Q c
  const at::Tensor b = r.linear + at::matmul(r.curvature, r.center);
  const at::Tensor G = identity + at::matmul(S, r.curvature);  // I + S Q
  const at::Tensor shifted = means + at::matmul(S, b);         // m + S b
  const at::Tensor tilted_mean =
      at::linalg_solve(G, shifted.unsqueeze(-1)).squeeze(-1);  // (I + S Q)^-1 (m + S b)
  at::Tensor tilted_cov = at::linalg_solve(G, S);
  tilted_cov = 0.5 * (tilted_cov + tilted_cov.transpose(-1, -2));
  if ((at::linalg_eigvalsh(tilted_cov) <= 0).any().item<bool>()) {
    fail(ErrorKind::kFailure,
         "the reward's curvature makes exp(r) not integrable under the base law");
  }
  // log E = const - log det(G)/2 + (b.m* + b.m - m.Q m*)/2: from completing the square, symmetric
  // in m and m*
  const at::Tensor constant = -0.5 * at::dot(r.center, at::matmul(r.curvature, r.center));
  const at::Tensor quadratic = (at::matmul(means, b) + at::matmul(tilted_mean, b) -
                                (at::matmul(means, r.curvature) * tilted_mean).sum(-1)) *
                               0.5;
  const at::Tensor log_det = std::get<1>(at::linalg_slogdet(G));
  return {tilted_mean, tilted_cov, constant - 0.5 * log_det + quadratic};
}

}  // namespace

TiltedMixture tilt(const GaussianMixture& base, const QuadraticForm& reward) {
  const GaussianTilt parts = tilt_gaussian(base.means, base.covariances, reward);
  const at::Tensor log_weights = base.weights.log() + parts.log_z;
  TiltedMixture out;
  out.log_z = log_weights.logsumexp(0).item<double>();
  out.law = {log_weights.softmax(0), parts.means, parts.covariances};
  // E r under N(m, S) = r(m) - tr(Q S)/2
  const at::Tensor traces =
      at::matmul(reward.curvature, parts.covariances).diagonal(0, 1, 2).sum(1);
  out.expected_reward =
      (out.law.weights * (evaluate(reward, parts.means) - 0.5 * traces)).sum().item<double>();
  return out;
}

struct MixtureField::Posterior {
  at::Tensor gamma;  // [N, M, 1]
  at::Tensor data;   // [N, M, d]  E[X_1 | x, component]
  at::Tensor q;      // [N, M, d]  C^-1 (x - alpha m)
  at::Tensor scale;  // [N or 1, M, d] 1 / (alpha^2 l + beta^2)
};

MixtureField::MixtureField(GaussianMixture mixture, std::shared_ptr<const Path> path)
    : mixture_(std::move(mixture)), path_(std::move(path)) {
  validate(mixture_);
  std::tie(eigenvalues_, eigenvectors_) = at::linalg_eigh(mixture_.covariances);
}

namespace {
// Row n of component m times that component's matrix: [N, M, d], [M, d, d] -> [N, M, d]
at::Tensor per_component(const at::Tensor& rows, const at::Tensor& matrices) {
  if (rows.size(2) == 1) return rows * matrices.squeeze(2);
  return at::matmul(rows.transpose(0, 1), matrices).transpose(0, 1);
}
}  // namespace

MixtureField::Posterior MixtureField::posterior(const at::Tensor& x,
                                                const std::vector<PathPoint>& points) const {
  const at::Tensor like = mixture_.means.unsqueeze(0);  // [1, M, d]
  const at::Tensor alpha = path_coefficient(points, &PathPoint::alpha, like);
  const at::Tensor beta = path_coefficient(points, &PathPoint::beta, like);
  Posterior out;
  out.scale = 1 / (alpha.square() * eigenvalues_ + beta.square());
  const at::Tensor y = x.unsqueeze(1) - alpha * mixture_.means;  // [N, M, d]
  const at::Tensor z = per_component(y, eigenvectors_);          // in eigen-coordinates
  out.q = per_component(z * out.scale, eigenvectors_.transpose(1, 2));
  out.data = mixture_.means +
             per_component(z * out.scale * eigenvalues_ * alpha, eigenvectors_.transpose(1, 2));
  const at::Tensor log_gamma =
      mixture_.weights.log() - 0.5 * (z.square() * out.scale).sum(2) + 0.5 * out.scale.log().sum(2);
  out.gamma = log_gamma.softmax(1).unsqueeze(2);
  return out;
}

at::Tensor MixtureField::velocity(const at::Tensor& x, const at::Tensor& t,
                                  const Condition&) const {
  const at::Tensor state = x.to(at::kDouble);
  const std::vector<PathPoint> points = path_points(*path_, t);
  const Posterior p = posterior(state, points);
  // v = alpha' x1_hat + beta' eps_hat, eps_hat = beta q: the product beta beta' is finite
  // everywhere
  const at::Tensor v =
      path_coefficient(points, &PathPoint::d_alpha, state) * (p.gamma * p.data).sum(1) +
      path_coefficient(points, &PathPoint::beta_d_beta, state) * (p.gamma * p.q).sum(1);
  return v.to(x.scalar_type());
}

Vjp MixtureField::vjp_of(const at::Tensor& x, const at::Tensor& t, const Condition&,
                         const Cotangent& cotangent) const {
  const at::NoGradGuard no_grad;
  const at::Tensor state = x.to(at::kDouble);
  const std::vector<PathPoint> points = path_points(*path_, t);
  const Posterior p = posterior(state, points);
  const at::Tensor c_data = path_coefficient(points, &PathPoint::d_alpha, state);
  const at::Tensor c_noise = path_coefficient(points, &PathPoint::beta_d_beta, state);
  const at::Tensor v =
      (c_data * (p.gamma * p.data).sum(1) + c_noise * (p.gamma * p.q).sum(1)).to(x.scalar_type());
  const at::Tensor a = cotangent(v).to(at::kDouble).unsqueeze(1);  // [N, 1, d]
  const at::Tensor alpha = path_coefficient(points, &PathPoint::alpha, p.q);
  const at::Tensor rotated = per_component(a.expand_as(p.q), eigenvectors_) * p.scale;
  const at::Tensor inverse_a = per_component(rotated, eigenvectors_.transpose(1, 2));  // C^-1 a
  const at::Tensor data_a = per_component(rotated * eigenvalues_ * alpha,
                                          eigenvectors_.transpose(1, 2));  // alpha S C^-1 a
  const at::Tensor drift = (p.gamma * p.q).sum(1, true) - p.q;             // grad log gamma_i
  const at::Tensor along_data = (p.gamma * (data_a + drift * (p.data * a).sum(2, true))).sum(1);
  const at::Tensor along_noise = (p.gamma * (inverse_a + drift * (p.q * a).sum(2, true))).sum(1);
  return {v, (c_data * along_data + c_noise * along_noise).to(x.scalar_type())};
}

at::Tensor value_function(const GaussianMixture& base, const Path& path,
                          const QuadraticForm& reward, const at::Tensor& x, double t) {
  // X_1 | X_t = x is a mixture with weights gamma_i(x, t) and Gaussian parts N(mu_i(x), P_i)
  const PathPoint p = path.at(t);
  const at::Tensor identity = at::eye(base.dimension(), at::kDouble);
  const at::Tensor C =
      p.alpha * p.alpha * base.covariances + p.beta * p.beta * identity;  // [M, d, d]
  const at::Tensor gain =
      p.alpha * at::linalg_solve(C, base.covariances).transpose(1, 2);  // alpha S C^-1
  const at::Tensor posterior_cov = base.covariances - p.alpha * at::matmul(gain, base.covariances);
  const GaussianMixture marginal{base.weights, p.alpha * base.means, C};
  const at::Tensor y = x.unsqueeze(1) - p.alpha * base.means;  // [N, M, d]
  const at::Tensor means = base.means + at::einsum("mij,nmj->nmi", {gain, y});
  const at::Tensor log_gamma = responsibilities(marginal, x).log();
  const GaussianTilt parts =
      tilt_gaussian(means, 0.5 * (posterior_cov + posterior_cov.transpose(1, 2)), reward);
  return -(log_gamma + parts.log_z).logsumexp(1);
}

at::Tensor optimal_control(const GaussianMixture& base, const Path& path,
                           const QuadraticForm& reward, const at::Tensor& x, double t) {
  const at::AutoGradMode grad(true);
  const at::Tensor input = x.detach().to(at::kDouble).set_requires_grad(true);
  const at::Tensor value = value_function(base, path, reward, input, t).sum();
  return torch::autograd::grad({value}, {input})[0] * -std::sqrt(2 * path.at(t).eta());
}

}  // namespace tiltflow
