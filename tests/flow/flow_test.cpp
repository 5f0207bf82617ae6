#include <cmath>

#include "tests/support.h"
#include "tiltflow/flow/time_grid.h"
#include "tiltflow/verify/problems.h"

namespace tiltflow {

TEST(flow_path, CoefficientsEqualTheOfficialOnes) {
  const ParameterSet golden =
      read_safetensors(test::golden("transport_coeffs.safetensors")).tensors;
  const at::Tensor t = golden.at("t").to(at::kDouble);
  int compared = 0;
  for (const auto& [official, name] :
       {std::pair{"Linear", "linear"}, {"GVP", "gvp"}, {"VP", "vp"}}) {
    const auto path = make_path(name);
    const auto check = [&](const std::string& key,
                           const std::function<double(const PathPoint&)>& value) {
      const std::string full = std::string(official) + "." + key + ".f64";
      if (!golden.contains(full)) return;
      const at::Tensor expected = golden.at(full).to(at::kDouble);
      for (std::int64_t i = 0; i < t.numel(); ++i) {
        const double e = expected[i].item<double>();
        const double time = t[i].item<double>();
        if (!std::isfinite(e)) continue;
        EXPECT_NEAR(value(path->at(time)), e, 1e-8 * (1 + std::abs(e)))
            << full << " at t = " << time;
        ++compared;
      }
    };
    check("alpha", [](const PathPoint& p) { return p.alpha; });
    check("sigma", [](const PathPoint& p) { return p.beta; });
    check("d_alpha", [](const PathPoint& p) { return p.d_alpha; });
    check("d_sigma", [](const PathPoint& p) { return p.d_beta; });
    check("alpha_ratio", [](const PathPoint& p) { return p.kappa(); });
    check("drift_var", [](const PathPoint& p) { return p.eta(); });
  }
  EXPECT_GT(compared, 50) << "the golden file has other names than expected";
}

TEST(flow_path, ConversionsEqualTheOfficialOnes) {
  const ParameterSet g = read_safetensors(test::golden("transport_convert.safetensors")).tensors;
  const at::Tensor x = g.at("x").to(at::kDouble);
  const at::Tensor out = g.at("model_out").to(at::kDouble);
  const at::Tensor t = g.at("t").to(at::kDouble);
  int compared = 0;
  for (const char* name : {"Linear", "GVP", "VP"}) {
    const auto path = make_path(std::string(name) == "Linear" ? "linear"
                                : std::string(name) == "GVP"  ? "gvp"
                                                              : "vp");
    for (std::int64_t i = 0; i < t.size(0); ++i) {
      const PathPoint p = path->at(t[i].item<double>());
      const auto check = [&](const std::string& key, const at::Tensor& found) {
        EXPECT_LT(test::relative_error(found, g.at(std::string(name) + "." + key)[i]),
                  std::string(name) == "VP" ? 5e-4 : 1e-5)
            << name << "." << key << " at t = " << p.t;
        ++compared;
      };
      check("xt", g.at("x1")[i].to(at::kDouble) * p.alpha + g.at("x0")[i].to(at::kDouble) * p.beta);
      check("ut",
            g.at("x1")[i].to(at::kDouble) * p.d_alpha + g.at("x0")[i].to(at::kDouble) * p.d_beta);
      check("score_from_velocity", score_from_velocity(p, x[i], out[i]));
      check("noise_from_velocity", noise_from_velocity(p, x[i], out[i]));
      check("velocity_from_score", velocity_from_score(p, x[i], out[i]));
      check("noise.ode_drift", velocity_from_noise(p, x[i], out[i]));
      check("noise.score", out[i] / -p.beta);
      check("score.ode_drift", velocity_from_score(p, x[i], out[i]));
      check("velocity.score", score_from_velocity(p, x[i], out[i]));
    }
  }
  EXPECT_EQ(compared, 3 * 9 * 9);
}

TEST(flow_path, ConversionsInvertEachOther) {
  const at::Tensor x = at::randn({6, 3}, at::kDouble);
  const at::Tensor v = at::randn({6, 3}, at::kDouble);
  for (const std::string& name : path_names()) {
    for (const double t : {0.01, 0.3, 0.7, 0.99}) {
      const PathPoint p = make_path(name)->at(t);
      EXPECT_LT(test::relative_error(velocity_from_data(p, x, data_from_velocity(p, x, v)), v),
                1e-9);
      EXPECT_LT(test::relative_error(velocity_from_noise(p, x, noise_from_velocity(p, x, v)), v),
                1e-9);
      EXPECT_LT(test::relative_error(velocity_from_score(p, x, score_from_velocity(p, x, v)), v),
                1e-9);
      const at::Tensor data = data_from_velocity(p, x, v);
      const at::Tensor noise = noise_from_velocity(p, x, v);
      EXPECT_LT(test::relative_error(data * p.alpha + noise * p.beta, x), 1e-10);
      EXPECT_LT(test::relative_error(data * p.d_alpha + noise * p.d_beta, v), 1e-9);
      EXPECT_LT(test::relative_error(score_from_velocity(p, x, v), -noise / p.beta), 1e-9);
    }
  }
}

TEST(flow_path, EndsAreFiniteWhereTheLimitExists) {
  const at::Tensor x = at::ones({1, 2}, at::kDouble);
  const at::Tensor v = at::ones({1, 2}, at::kDouble) * 0.5;
  for (const std::string& name : path_names()) {
    const auto path = make_path(name);
    for (const double t : {0.0, 1.0}) {
      EXPECT_TRUE(at::isfinite(data_from_velocity(path->at(t), x, v)).all().item<bool>())
          << name << t;
      EXPECT_TRUE(at::isfinite(noise_from_velocity(path->at(t), x, v)).all().item<bool>())
          << name << t;
    }
    EXPECT_TRUE(at::isfinite(score_from_velocity(path->at(0), x, v)).all().item<bool>()) << name;
  }
  EXPECT_NO_THROW(score_from_velocity(make_path("vp")->at(1), x, v));
  test::expect_error(ErrorKind::kFailure, "no limit",
                     [&] { score_from_velocity(make_path("linear")->at(1), x, v); });
  test::expect_error(ErrorKind::kFailure, "no limit",
                     [&] { velocity_from_score(make_path("gvp")->at(0), x, v); });
  test::expect_error(ErrorKind::kConfig, "did you mean 'linear'", [&] { make_path("linar"); });
}

TEST(flow_grid, EndsAndOrder) {
  for (const char* name : {"uniform", "cosine", "shifted"}) {
    const auto grid = make_grid(name, 7, 3);
    EXPECT_EQ(grid.size(), 8u);
    EXPECT_EQ(grid.front(), 0);
    EXPECT_EQ(grid.back(), 1);
    EXPECT_TRUE(std::is_sorted(grid.begin(), grid.end()));
  }
  test::expect_error(ErrorKind::kConfig, "at least one", [] { make_grid("uniform", 0); });
}

// The flow's velocity must give the score of the marginal: s = grad log p_t with p_t = sum pi
// N(alpha m, alpha^2 S + beta^2).
TEST(flow_mixture, VelocityAgreesWithTheScoreOfTheMarginal) {
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
TEST(flow_mixture, TiltAgreesWithQuadrature) {
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

TEST(flow_mixture, SamplesHaveTheRightMoments) {
  const GaussianMixture p = plane_modes(true).base->mixture();
  const at::Tensor x = sample(p, RandomStreams(5), 0, 40000);
  EXPECT_LT((x.mean(0) - mean(p)).abs().max().item<double>(), 0.03);  // 5 standard errors
  EXPECT_LT((at::cov(x.t()) - covariance(p)).abs().max().item<double>(), 0.05);
  test::expect_error(ErrorKind::kFailure, "sum to 1",
                     [&] { validate({p.weights * 2, p.means, p.covariances}); });
}

}  // namespace tiltflow
