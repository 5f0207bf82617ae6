#include <cmath>

#include "tests/support.h"
#include "tiltflow/flow/path.h"

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

}  // namespace tiltflow
