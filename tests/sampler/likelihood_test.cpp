#include <algorithm>
#include <cmath>

#include "tests/support.h"
#include "tiltflow/flow/time_grid.h"
#include "tiltflow/models/model_file.h"
#include "tiltflow/sampler/fields.h"
#include "tiltflow/sampler/likelihood.h"
#include "tiltflow/sampler/ode.h"
#include "tiltflow/sampler/sample.h"
#include "tiltflow/sampler/sde.h"
#include "tiltflow/tensor/statistics.h"
#include "tiltflow/verify/problems.h"

namespace tiltflow {

// Guidance on the first three channels, integration from data to noise, and the log-likelihood with
// recorded probes.
TEST(sampler_likelihood, GuidedReverseAndLikelihood) {
  const std::shared_ptr<const VelocityModel> model =
      load_velocity_model(test::golden("sit_a_ema.safetensors"), {{"num_heads", "4"}}).model;
  const ParameterSet g = read_safetensors(test::golden("guided.safetensors")).tensors;
  const auto linear = make_path("linear");
  const auto gvp = make_path("gvp");
  const Condition chosen{g.at("cfg.y").narrow(0, 0, 2)};
  const Condition labels{g.at("y")};
  Guidance guidance{4, 3};
  const auto field = guided(model, guidance, model->classes());
  const auto first_half = [&](const char* key) { return g.at(key).narrow(0, 0, 2); };
  OdeOptions euler{OdeMethod::kEuler};
  OdeOptions tight{OdeMethod::kDopri5, 1e-6, 1e-7};
  EXPECT_LT(test::relative_error(solve_ode(*field, g.at("z"), uniform_grid(9), chosen, euler).x,
                                 first_half("cfg4.Linear.velocity.euler")),
            1e-5);
  EXPECT_LT(test::relative_error(solve_ode(*field, g.at("z"), uniform_grid(9), chosen, tight).x,
                                 first_half("cfg4.Linear.velocity.dopri5")),
            1e-2);  // recorded at rtol 1e-3
  SdeOptions sde;
  sde.form = "sigma";
  const NoiseSource noise = [&](int k) { return g.at("sde.noise")[k]; };
  EXPECT_LT(test::relative_error(
                solve_sde(*field, *linear, g.at("sde.z"), sde_grid(*linear, "velocity", sde, 10),
                          {g.at("sde.cfg.y").narrow(0, 0, 2)}, noise, sde),
                first_half("sde.cfg4.Linear.velocity.Euler.sigma.Mean")),
            1e-4);
  // All channels guided is something else.
  const auto everywhere = guided(model, {4}, model->classes());
  EXPECT_GT(
      test::relative_error(solve_ode(*everywhere, g.at("z"), uniform_grid(9), chosen, euler).x,
                           first_half("cfg4.Linear.velocity.euler")),
      1e-2);

  std::vector<double> back = uniform_grid(9);
  std::reverse(back.begin(), back.end());
  EXPECT_LT(test::relative_error(solve_ode(*model, g.at("z"), back, labels, euler).x,
                                 g.at("Linear.velocity.euler.reverse")),
            1e-5);
  EXPECT_LT(test::relative_error(solve_ode(*model, g.at("z"), back, labels, {OdeMethod::kHeun}).x,
                                 g.at("GVP.velocity.heun2.reverse")),
            1e-5);

  const DivergenceRule rule = hutchinson(g.at("likelihood.probe").unsqueeze(0));
  const Likelihood a = log_likelihood(*model, g.at("likelihood.x"), back, labels, rule, euler);
  EXPECT_LT(test::relative_error(a.latent, g.at("likelihood.euler.z")), 1e-5);
  EXPECT_LT(test::relative_error(a.log_prob, g.at("likelihood.euler.logp")), 1e-5);
  const Likelihood b = log_likelihood(*model, g.at("likelihood.x"), back, labels, rule, tight);
  EXPECT_LT(test::relative_error(b.latent, g.at("likelihood.dopri5.z")), 6e-3);
  EXPECT_LT(test::relative_error(b.log_prob, g.at("likelihood.dopri5.logp")), 6e-3);
}

// The exact trace gives the exact density of a mixture, whose own density is known; Hutchinson's
// estimate scatters around it.
TEST(sampler_likelihood, ExactForAMixture) {
  for (const char* path : {"linear", "gvp", "vp"}) {
    const auto p = make_path(path);
    const ExactProblem problem = plane_modes(false);
    const MixtureField field(problem.base->mixture(), p);
    const at::Tensor x = sample(problem.base->mixture(), RandomStreams(4), 0, 200);
    SamplerConfig config;
    config.name = "ode-dopri5";
    config.epsilon = 1e-6;
    std::vector<double> grid = grid_of(config, *p);
    std::reverse(grid.begin(), grid.end());
    const OdeOptions tight{OdeMethod::kDopri5, 1e-8, 1e-9};
    const at::Tensor truth = log_density(problem.base->mixture(), x);
    const at::Tensor exact =
        log_likelihood(field, x, grid, {}, exact_divergence(64), tight).log_prob;
    EXPECT_LT((exact - truth).abs().max().item<double>(), std::string(path) == "vp" ? 5e-3 : 1e-5)
        << path;  // vp starts at alpha = 0.007, not 0
    const DivergenceRule rule =
        hutchinson(rademacher(RandomStreams(5), 4, 0, 200, {2}).to(at::kDouble));
    const at::Tensor estimate = log_likelihood(field, x, grid, {}, rule, tight).log_prob - truth;
    EXPECT_LT(std::abs(mean_estimate(estimate).value), 4 * mean_estimate(estimate).se + 2e-3)
        << path;
    EXPECT_GT(mean_estimate(estimate).se, 1e-3) << "an estimate scatters";
  }
}

// Along Euler's path the divergence enters linearly: two probes give the mean of what each gives.
TEST(sampler_likelihood, ProbesAreAveraged) {
  const ExactProblem p = plane_modes(false);
  const at::Tensor x = RandomStreams(4).normal(Purpose::kProbe, 0, 0, 0, 5, {2}, at::kDouble);
  const at::Tensor probes = rademacher(RandomStreams(5), 2, 0, 5, {2}).to(at::kDouble);
  const auto log_prob = [&](const at::Tensor& some) {
    const std::vector<double> back{0.95, 0.7, 0.4, 0.1};
    const OdeOptions euler{OdeMethod::kEuler};
    return log_likelihood(*p.base, x, back, {}, hutchinson(some), euler).log_prob;
  };
  const at::Tensor first = log_prob(probes.narrow(0, 0, 1));
  const at::Tensor second = log_prob(probes.narrow(0, 1, 1));
  EXPECT_FALSE(at::allclose(first, second, 1e-3, 1e-3)) << "or their mean says nothing";
  EXPECT_TRUE(at::allclose(log_prob(probes), (first + second) / 2, 1e-9, 1e-9));
}

}  // namespace tiltflow
