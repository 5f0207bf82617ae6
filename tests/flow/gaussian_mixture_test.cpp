#include <cmath>

#include "tests/support.h"
#include "tiltflow/flow/gaussian_mixture.h"
#include "tiltflow/verify/problems.h"

namespace tiltflow {

// The flow's velocity must give the score of the marginal: s = grad log p_t with p_t = sum pi
// N(alpha m, alpha^2 S + beta^2).
TEST(flow_gaussian_mixture, VelocityAgreesWithTheScoreOfTheMarginal) {
  for (const std::string& name : path_names()) {
    const ExactProblem p =
        make_problem("", plane_modes(false).base->mixture(), plane_modes(false).form, name);
    const GaussianMixture& base = p.base->mixture();
    for (const double t : {0.05, 0.5, 0.95}) {
      const PathPoint point = p.path->at(t);
      const GaussianMixture marginal{base.weights, base.means * point.alpha,
                                     base.covariances * (point.alpha * point.alpha) +
                                         at::eye(2, at::kDouble) * (point.beta * point.beta)};
      const at::Tensor x = at::randn({7, 2}, at::kDouble).set_requires_grad(true);
      const at::Tensor score = torch::autograd::grad({log_density(marginal, x).sum()}, {x})[0];
      const at::Tensor v = p.base->velocity(x.detach(), time_tensor(t, x), {});
      EXPECT_LT(test::relative_error(score_from_velocity(point, x.detach(), v), score), 1e-9)
          << name << t;
    }
    // mixed times in one call equal separate calls
    const at::Tensor x = at::randn({3, 2}, at::kDouble);
    const at::Tensor times = at::tensor(std::vector<double>{0.0, 0.4, 1.0}, at::kDouble);
    const at::Tensor together = p.base->velocity(x, times, {});
    for (std::int64_t i = 0; i < 3; ++i) {
      EXPECT_LT((together[i] - p.base->velocity(x.narrow(0, i, 1), times.narrow(0, i, 1), {})[0])
                    .abs()
                    .max()
                    .item<double>(),
                1e-12);
    }
    EXPECT_TRUE(at::isfinite(together).all().item<bool>()) << name << ": the ends must be finite";
  }
}

// Tilted weights, normaliser and KL against brute-force quadrature in one dimension.
TEST(flow_gaussian_mixture, TiltAgreesWithQuadrature) {
  for (const ExactProblem& p : {two_modes(), near_modes_quadratic(), line_gaussian(true)}) {
    const at::Tensor x = at::linspace(-9, 9, 200001, at::kDouble).unsqueeze(1);
    const double h = 18.0 / 200000;
    const at::Tensor base = log_density(p.base->mixture(), x).exp();
    const at::Tensor r = evaluate(p.form, x);
    const double z = (base * r.exp()).sum().item<double>() * h;
    EXPECT_NEAR(std::log(z), p.target.log_z, 1e-9);
    const at::Tensor tilted = base * r.exp() / z;
    EXPECT_LT((tilted - log_density(p.target.law, x).exp()).abs().max().item<double>(), 1e-9);
    EXPECT_NEAR((tilted * (r - std::log(z))).sum().item<double>() * h, p.target.kl(), 1e-9);
    // value function at t = 0 is -log Z for a memoryless start, everywhere
    EXPECT_NEAR(value_function(p.base->mixture(), *p.path, p.form,
                               at::full({1, 1}, 0.7, at::kDouble), 0.0)[0]
                    .item<double>(),
                -p.target.log_z, 1e-9);
  }
  EXPECT_NEAR(two_modes().target.law.weights[1].item<double>(), 0.8808, 1e-4);
  EXPECT_NEAR(line_gaussian(true).target.law.means[0][0].item<double>(), 1.1354, 1e-4);
  EXPECT_NEAR(line_gaussian(true).target.law.covariances[0][0][0].item<double>(), 0.2824, 1e-4);
  EXPECT_NEAR(line_gaussian(true).target.kl(), 0.4757, 1e-4);
}

TEST(flow_gaussian_mixture, SamplesHaveTheRightMoments) {
  const GaussianMixture p = plane_modes(true).base->mixture();
  const at::Tensor x = sample(p, RandomStreams(5), 0, 40000);
  EXPECT_LT((x.mean(0) - mean(p)).abs().max().item<double>(), 0.03);  // 5 standard errors
  EXPECT_LT((at::cov(x.t()) - covariance(p)).abs().max().item<double>(), 0.05);
  test::expect_error(ErrorKind::kFailure, "sum to 1",
                     [&] { validate({p.weights * 2, p.means, p.covariances}); });
}

}  // namespace tiltflow
