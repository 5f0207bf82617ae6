#include <algorithm>
#include <cmath>

#include "tests/support.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/flow/prediction.h"
#include "tiltflow/flow/time_grid.h"
#include "tiltflow/models/model_file.h"
#include "tiltflow/reward/importance.h"
#include "tiltflow/sampler/fields.h"
#include "tiltflow/sampler/lean_adjoint.h"
#include "tiltflow/sampler/likelihood.h"
#include "tiltflow/sampler/ode.h"
#include "tiltflow/sampler/sample.h"
#include "tiltflow/sampler/sde.h"
#include "tiltflow/tensor/parallel.h"
#include "tiltflow/tensor/statistics.h"
#include "tiltflow/verify/problems.h"

namespace tiltflow {

TEST(sampler_table, LinearClosedForms) {
  const auto path = make_path("linear");
  const int K = 25;
  const double h = 1.0 / K;
  const TransitionTable euler = memoryless_euler(*path, uniform_grid(K));
  const TransitionTable paper = memoryless_euler(*path, uniform_grid(K), Offsets::kPaper);
  const TransitionTable exponential = exponential_integrator(*path, uniform_grid(K));
  for (int k = 0; k < K; ++k) {
    const double t = k * h;
    const double next = (k + 1) * h;
    const Transition& e = euler.steps[static_cast<std::size_t>(k)];
    const Transition& p = paper.steps[static_cast<std::size_t>(k)];
    const Transition& x = exponential.steps[static_cast<std::size_t>(k)];
    EXPECT_NEAR(e.p, 1 - h / (t + h), 1e-12);
    EXPECT_NEAR(e.c, 2 * h, 1e-12);
    EXPECT_NEAR(e.s * e.s, h * 2 * (1 - t) / (t + h), 1e-12);
    EXPECT_NEAR(p.s * p.s, h * 2 * (1 - t + h) / (t + h), 1e-12);
    EXPECT_NEAR(x.c, (next * next - t * t) / next, 1e-12);
    EXPECT_NEAR(
        x.s * x.s,
        2 / (next * next) * ((next * next - t * t) / 2 - (next * next * next - t * t * t) / 3),
        1e-12);
  }
  EXPECT_NEAR(euler.steps[0].s * euler.steps[0].s, 2,
              1e-12);  // not 1: consistent with the coefficient 2h on v
}

TEST(sampler_table, DdimIsDdpmAtEtaOne) {
  const auto path = make_path("vp");
  const TransitionTable table = ddim(*path, uniform_grid(10), 1, FinalStep::kClean);
  for (std::size_t k = 0; k + 1 < table.steps.size();
       ++k) {  // posterior variance of DDPM in terms of alpha-bar
    const double now = std::pow(path->at(table.steps[k].t).alpha, 2);
    const double next = std::pow(path->at(table.steps[k + 1].t).alpha, 2);
    EXPECT_NEAR(table.steps[k].s * table.steps[k].s, (1 - next) / (1 - now) * (1 - now / next),
                1e-10);
  }
  EXPECT_EQ(table.steps.back().s, 0);
  for (const Transition& step : ddim(*path, uniform_grid(10), 0, FinalStep::kClean).steps) {
    EXPECT_EQ(step.s, 0);
  }
  EXPECT_GT(ddim(*path, uniform_grid(10), 1, FinalStep::kHalfway).steps.back().s, 0);
}

TEST(sampler_table, BadInputIsRefused) {
  const auto path = make_path("gvp");
  test::expect_error(ErrorKind::kConfig, "linear path",
                     [&] { memoryless_euler(*path, uniform_grid(4), Offsets::kPaper); });
  test::expect_error(ErrorKind::kConfig, "did you mean 'euler'",
                     [&] { make_table("eulr", *path, uniform_grid(4)); });
  test::expect_error(ErrorKind::kConfig, "rise",
                     [&] { exponential_integrator(*path, {0, 0.5, 0.5, 1}); });
}

// Every table reproduces the base law as the grid gets finer.
TEST(sampler_rollout, BaseLawIsReproduced) {
  for (const std::string& name : path_names()) {
    const ExactProblem p = line_gaussian(false, name);
    for (const char* sampler : {"euler", "exponential", "ancestral", "half-noise"}) {
      const TransitionTable table = make_table(sampler, *p.path, uniform_grid(300));
      const RandomStreams streams(1);
      const at::Tensor x_0 = prior_sample(streams, 0, 0, 10000, {1}, at::kDouble);
      const at::Tensor x = rollout(*p.base, table, x_0, {}, keyed_noise(streams, 0, 0, x_0)).last;
      EXPECT_NEAR(x.mean().item<double>(), 0.5, 0.035) << name << " " << sampler;  // 5 s.e. = 0.035
      EXPECT_NEAR(x.var().item<double>(), 0.49, 0.035) << name << " " << sampler;  // 5 s.e. = 0.035
    }
  }
}

TEST(sampler_rollout, KeepsWhatItIsAskedToKeep) {
  const ExactProblem p = plane_modes(false);
  const TransitionTable table = make_table("auto", *p.path, uniform_grid(6));
  const RandomStreams streams(2);
  const at::Tensor x_0 = prior_sample(streams, 0, 0, 5, {2}, at::kDouble);
  RolloutOptions options;
  options.keep_states = options.keep_noises = options.keep_velocities = true;
  const Trajectory path =
      rollout(*p.base, table, x_0, {}, keyed_noise(streams, 0, 0, x_0), options);
  ASSERT_EQ(path.states.size(), 7u);
  for (std::size_t k = 0; k < 6; ++k) {
    const Transition& s = table.steps[k];
    EXPECT_LT((path.states[k] * s.p + path.velocities[k] * s.c + path.noises[k] * s.s -
               path.states[k + 1])
                  .abs()
                  .max()
                  .item<double>(),
              1e-12);
    // the density of the step that was taken, against its definition
    const double d =
        transition_log_density(s, path.states[k], path.velocities[k], path.states[k + 1])[0]
            .item<double>();
    const double xi = path.noises[k][0].square().sum().item<double>();
    EXPECT_NEAR(d, -0.5 * xi - 2 * std::log(s.s) - std::log(2 * M_PI), 1e-9);
  }
}

TEST(sampler_ode, OrdersOfConvergence) {
  const ExactProblem p = line_gaussian(false, "gvp");
  const at::Tensor x_0 = at::tensor(std::vector<double>{-1.0, 0.3, 1.7}, at::kDouble).view({3, 1});
  // exact flow of a Gaussian: keeps quantiles, N(0, 1) -> N(0.5, 0.49)
  const at::Tensor exact = x_0 * 0.7 + 0.5;
  for (const auto& [method, order] :
       {std::pair{"euler", 1.0}, {"midpoint", 2.0}, {"heun", 2.0}, {"rk4", 4.0}}) {
    OdeOptions options;
    options.method = parse_ode_method(method);
    const auto error = [&](int steps) {
      return (solve_ode(*p.base, x_0, uniform_grid(steps), {}, options).x - exact)
          .abs()
          .max()
          .item<double>();
    };
    EXPECT_NEAR(std::log2(error(20) / error(40)), order, 0.35) << method;
  }
  OdeOptions adaptive{OdeMethod::kDopri5, 1e-8, 1e-8, 10000};
  const OdeResult forward = solve_ode(*p.base, x_0, {0, 1}, {}, adaptive);
  EXPECT_LT((forward.x - exact).abs().max().item<double>(), 1e-6);
  EXPECT_EQ(forward.evaluations, 1 + 6 * (forward.accepted + forward.rejected));
  EXPECT_LT(
      (solve_ode(*p.base, forward.x, {1, 0}, {}, adaptive).x - x_0).abs().max().item<double>(),
      1e-6)
      << "and back";
}

// One Jacobian for a group of steps: exact for a group of one, otherwise with an error that falls
// with the step and grows with the group. Of two steps the Jacobian is that of the second, so the
// very last adjoint is exact.
TEST(sampler_adjoint, CoarsePassesConverge) {
  const ExactProblem problem = near_modes();
  const VelocityField& field = *problem.base;
  const auto error = [&](int steps, std::size_t stride) {
    const TransitionTable table = memoryless_euler(*problem.path, uniform_grid(steps));
    const at::Tensor x_0 = prior_sample(RandomStreams(4), 0, 0, 64, {1}, at::kDouble);
    RolloutOptions options;
    options.keep_states = true;
    const Trajectory path =
        rollout(field, table, x_0, {}, keyed_noise(RandomStreams(4), 1, 0, x_0), options);
    const at::Tensor end = at::ones_like(x_0);
    const AdjointPass exact = lean_adjoint(field, table, path.states, {}, end);
    const AdjointPass coarse = lean_adjoint(field, table, path.states, {}, end, {.stride = stride});
    const auto K = static_cast<std::size_t>(steps);
    if (stride == 2) {
      EXPECT_TRUE(at::equal(exact.adjoints[K - 1], coarse.adjoints[K - 1]));
    }
    double sum = 0;
    for (std::size_t k = 1; k < K; ++k) {
      sum += ((coarse.adjoints[k] - exact.adjoints[k]).norm() / exact.adjoints[k].norm())
                 .item<double>() /
             static_cast<double>(K - 1);
    }
    return sum;
  };
  EXPECT_EQ(error(40, 1), 0);
  EXPECT_GT(error(40, 2), 1e-3);
  EXPECT_LT(error(160, 2), 0.6 * error(40, 2))
      << "like the root of the step: the Jacobian is that of a state the noise has moved";
  EXPECT_GT(error(40, 4), 1.5 * error(40, 2));
}

// States, adjoints and losses recorded from the official network in fp64.
TEST(sampler_adjoint, GoldenSitTrajectory) {
  const auto base = load_velocity_model(test::golden("sit_a_ema.safetensors"), {{"num_heads", "4"}},
                                        {}, at::kDouble);
  const auto tuned = load_velocity_model(test::golden("sit_a_model.safetensors"),
                                         {{"num_heads", "4"}}, {}, at::kDouble);
  const ParameterSet g = read_safetensors(test::golden("lean_adjoint.safetensors")).tensors;
  const TransitionTable table = memoryless_euler(*make_path("linear"), uniform_grid(8));
  const Condition labels{g.at("y")};
  for (const auto& [prefix, field] :
       {std::pair<std::string, const VelocityField*>{"base", base.model.get()},
        {"onpolicy", tuned.model.get()}}) {
    const at::Tensor X = g.at(prefix + ".X");
    const at::Tensor a = g.at(prefix + ".a");
    const at::Tensor delta = g.at(prefix + ".delta");
    const at::Tensor loss = g.at(prefix + ".loss");
    RolloutOptions keep;
    keep.keep_states = true;
    const Trajectory path =
        rollout(*field, table, g.at("z"), labels, [&](int k) { return g.at("xi")[k]; }, keep);
    EXPECT_LT(test::relative_error(at::stack(path.states), X), 1e-9) << prefix;
    const AdjointPass pass =
        lean_adjoint(*base.model, table, path.states, labels, a[8], {.to_start = true});
    EXPECT_LT(test::relative_error(at::stack(pass.adjoints), a), 1e-9) << prefix;
    const at::NoGradGuard no_grad;
    for (std::int64_t k = 0; k < 8; ++k) {
      const Transition& s = table.steps[static_cast<std::size_t>(k)];
      const at::Tensor d = (tuned.model->velocity(X[k], time_tensor(s.t, X[k]), labels) -
                            pass.base_velocities[static_cast<std::size_t>(k)]) *
                           s.c;
      EXPECT_LT(test::relative_error(d, delta[k]), 1e-8);
      const at::Tensor per_sample = (d / s.s + pass.adjoints[static_cast<std::size_t>(k) + 1] * s.s)
                                        .square()
                                        .flatten(1)
                                        .sum(1);
      EXPECT_LT(test::relative_error(per_sample, loss[k]), 1e-8);
    }
  }
}

TEST(sampler_fields, GuidanceAndCounting) {
  const auto loaded =
      load_velocity_model(test::golden("sit_b_ema.safetensors"), {{"num_heads", "3"}});
  const std::shared_ptr<const VelocityModel> model(
      loaded.model->rebind(loaded.model->parameters(), {}));
  const at::Tensor x = at::randn({2, 1, 28, 28});
  const at::Tensor t = at::full({2}, 0.4);
  const Condition labels{at::tensor(std::vector<std::int64_t>{1, 5})};
  const at::NoGradGuard no_grad;
  const at::Tensor conditional = model->velocity(x, t, labels);
  const at::Tensor unconditional = model->velocity(x, t, {});
  EXPECT_LT(test::relative_error(GuidedField(model, {3}, 10).velocity(x, t, labels),
                                 unconditional + (conditional - unconditional) * 3),
            1e-5);
  EXPECT_LT(test::relative_error(GuidedField(model, {1}, 10).velocity(x, t, labels), conditional),
            1e-5);
  const CountingField counted(model);
  counted.velocity(x, t, labels);
  counted.vjp(x, t, labels, x);
  EXPECT_EQ(counted.count(), 2 + 4);
}

TEST(sampler_draw, SamplesDoNotDependOnChunksOrWorkers) {
  const ExactProblem p = plane_modes(false);
  SamplerConfig config;
  config.steps = 8;
  const auto run = [&](std::int64_t n, std::int64_t chunk, int workers) {
    set_thread_policy({workers, 1});
    DrawOptions options;
    options.n = n;
    options.chunk = chunk;
    return draw(*p.base, config, *p.path, {2}, RandomStreams(4), no_labels(), options).x;
  };
  const at::Tensor one = run(20, 20, 1);
  EXPECT_LT((run(20, 3, 4) - one).abs().max().item<double>(), 1e-6);
  EXPECT_LT((run(7, 7, 1) - one.narrow(0, 0, 7)).abs().max().item<double>(), 1e-6);
  set_thread_policy({1, 1});
}

// Under the field's own law, E exp(log_ratio) = 1 and E log_ratio = -E cost.
TEST(sampler_draw, PathDensityRatioIsADensity) {
  const ExactProblem p = line_gaussian(false);
  const MixtureField tuned(p.target.law, p.path);
  SamplerConfig config;
  config.steps = 15;
  DrawOptions options;
  options.n = 20000;
  options.chunk = 1000;
  options.reference = p.base.get();
  const Draws d = draw(tuned, config, *p.path, {1}, RandomStreams(6), no_labels(), options);
  const at::Tensor ratio = d.log_ratio.to(at::kDouble).exp();
  const double se = ratio.std().item<double>() / std::sqrt(20000.0);
  EXPECT_NEAR(ratio.mean().item<double>(), 1, 4 * se);
  const at::Tensor sum = (d.log_ratio + d.cost).to(at::kDouble);
  EXPECT_NEAR(sum.mean().item<double>(), 0, 4 * sum.std().item<double>() / std::sqrt(20000.0));
  // near the optimum r + log_ratio is constant: log Z with hardly any error
  const PathGap gap = path_gap(p.reward->score(d.x, {}), d.log_ratio, {});
  EXPECT_NEAR(gap.gap, 0, 0.01);
  EXPECT_LT(gap.gap_se, 0.002);
}

std::vector<double> recorded_times(const Path& path, const std::string& prediction) {
  const TimeEnds ends = ode_ends(path, prediction, 1e-3);
  std::vector<double> grid = uniform_grid(9);
  for (double& t : grid) t = ends.begin + (ends.end - ends.begin) * t;
  return grid;
}

// Final states of the official samplers with recorded noises: every path, prediction, diffusion,
// method and last step.
TEST(sampler_official, EverySolverReproducesTheRecordedStates) {
  const std::shared_ptr<const VelocityModel> model =
      load_velocity_model(test::golden("sit_a_ema.safetensors"), {{"num_heads", "4"}}).model;
  const ParameterSet g = read_safetensors(test::golden("samplers.safetensors")).tensors;
  const Condition labels{g.at("y")};
  const NoiseSource noise = [&](int k) { return g.at("noise")[k]; };
  const auto lower = [](std::string text) {
    for (char& c : text) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    return text;
  };
  int stochastic = 0;
  int deterministic = 0;
  for (const auto& [key, expected] : g) {
    const std::vector<std::string> part = split(key, '.');
    if (part.size() < 3 || part[0] == "ode") continue;
    const auto path = make_path(lower(part[0]));
    SdeOptions options;
    options.method = lower(part[2]);
    options.form = lower(part[3]);
    options.last_step = lower(part[4]);
    if (part.size() > 5) options.norm = std::atof((part[5].substr(4) + "." + part[6]).c_str());
    const PredictionField field(model, path, part[1]);
    const at::Tensor found = solve_sde(
        field, *path, g.at("z"), sde_grid(*path, part[1], options, 10), labels, noise, options);
    EXPECT_LT(test::relative_error(found, expected), 1e-4) << key;
    ++stochastic;
  }
  for (const auto& [key, expected] : g) {
    std::vector<std::string> part = split(key, '.');
    const bool exact = part.size() > 1 && part[1] == "exact";
    if (part.size() < 4 || part[0] != "ode" || part[3] == "heun3") continue;
    if (exact) part = {"ode", part[2], part[3], "dopri5"};
    const auto path = make_path(lower(part[1]));
    OdeOptions options;
    options.method = parse_ode_method(part[3] == "heun2" ? "heun" : part[3]);
    options.rtol = 1e-6;
    options.atol = 1e-7;
    const PredictionField field(model, path, part[2]);
    const at::Tensor found =
        solve_ode(field, g.at("ode.z"), recorded_times(*path, part[2]), {g.at("ode.y")}, options).x;
    // Adaptive: the recorded states are only as good as their tolerance, the exact ones are
    // solutions in fp64.
    const double tolerance = exact ? 1e-4 : part[3] == "dopri5" ? 6e-3 : 1e-5;
    EXPECT_LT(test::relative_error(found, expected), tolerance) << key;
    ++deterministic;
  }
  EXPECT_GT(stochastic, 120);
  EXPECT_GT(deterministic, 30);
}

// Guidance on the first three channels, integration from data to noise, and the log-likelihood with
// recorded probes.
TEST(sampler_official, GuidedReverseAndLikelihood) {
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

TEST(sampler_fields, GuidanceActsInItsIntervalOnly) {
  const std::shared_ptr<const VelocityModel> model =
      load_velocity_model(test::golden("sit_b_ema.safetensors"), {{"num_heads", "3"}}).model;
  const at::Tensor x = RandomStreams(1).normal(Purpose::kProbe, 0, 0, 0, 3, {1, 28, 28});
  const Condition labels{at::arange(3)};
  Guidance inner{5, 0, 0.3, 0.6};
  const auto field = guided(model, inner, 10);
  const auto always = guided(model, {5}, 10);
  const at::Tensor t = at::tensor({0.1F, 0.5F, 0.9F});
  const at::Tensor mixed = field->velocity(x, t, labels);
  const at::Tensor plain = model->velocity(x, t, labels);
  const at::Tensor full = always->velocity(x, t, labels);
  EXPECT_LT((mixed[0] - plain[0]).abs().max().item<double>(), 1e-5);
  EXPECT_LT((mixed[1] - full[1]).abs().max().item<double>(), 1e-5);
  EXPECT_LT((mixed[2] - plain[2]).abs().max().item<double>(), 1e-5);
  EXPECT_GT((plain[1] - full[1]).abs().max().item<double>(), 1e-2);
  CountingField counted(model);
  const auto over = guided(
      std::shared_ptr<const VelocityField>(&counted, [](const VelocityField*) {}), inner, 10);
  over->velocity(x, time_tensor(0.1, x), labels);
  EXPECT_EQ(counted.count(), 3) << "outside the interval one evaluation is enough";
  EXPECT_EQ(guided(model, {1}, 10), model);
  EXPECT_THROW(guided(model, {2, 0, 0.5, 0.5}, 10), Error);
  EXPECT_THROW(guided(model, {2}, 0), Error);
}

TEST(sampler_labels, ListsFilesAndWeights) {
  const RandomStreams streams(3);
  LabelConfig config;
  config.kind = "list";
  config.list = {4, 1, 7};
  EXPECT_TRUE(
      at::equal(make_labels(config, 10, streams, 0, 2)(1, 4), at::tensor({4, 1, 7, 4}, at::kLong)));
  config.list = {4, 11};
  test::expect_error(ErrorKind::kConfig, "label 11 is out of range",
                     [&] { make_labels(config, 10, streams, 0, 0); });
  config.kind = "weighted";
  config.weights = {0, 3, 1, 0};
  const at::Tensor drawn = make_labels(config, 4, streams, 0, 0)(0, 4000);
  const at::Tensor shares = drawn.bincount({}, 4).to(at::kDouble) / 4000;
  EXPECT_EQ(shares[0].item<double>() + shares[3].item<double>(), 0);
  EXPECT_NEAR(shares[1].item<double>(), 0.75, 0.03);
  EXPECT_TRUE(at::equal(make_labels(config, 4, streams, 0, 0)(100, 50), drawn.narrow(0, 100, 50)))
      << "sample i keeps its label";
  test::expect_error(ErrorKind::kConfig, "4 label weights for 10 classes",
                     [&] { make_labels(config, 10, streams, 0, 0); });
  test::expect_error(ErrorKind::kConfig, "not a label", [] { parse_labels("1, 2.5", "x"); });
  test::expect_error(ErrorKind::kConfig, "'cat' is not a number",
                     [] { parse_labels("1 cat", "x"); });
}

// Text files as editors and spreadsheets write them; errors name the line.
TEST(sampler_labels, FilesOfOtherEditors) {
  const test::TempDir dir;
  LabelConfig config;
  config.kind = "file";
  config.file = (dir / "l.txt").string();
  const auto read = [&](const std::string& content) {
    write_file_atomic(config.file, content);
    return make_labels(config, 10, RandomStreams(1), 0, 0)(0, 3);
  };
  const at::Tensor expected = at::tensor({3, 1, 10}, at::kLong);
  EXPECT_TRUE(at::equal(read("\xef\xbb\xbf"
                             "3\r\n1\r\n10\r\n"),
                        expected))
      << "a byte order mark and CRLF";
  EXPECT_TRUE(at::equal(read("\n3,1,\n\n 10,\n\n"), expected)) << "blank lines, trailing commas";
  EXPECT_TRUE(at::equal(read("3\t1.0 10"), expected))
      << "no last newline; whole numbers of a table with gaps";
  test::expect_error(ErrorKind::kConfig, "l.txt, line 3: label 11 is out of range",
                     [&] { read("1\n\n11\n"); });
  test::expect_error(ErrorKind::kConfig, "l.txt, line 2: label -1 is out of range",
                     [&] { read("1\n-1\n"); });
  test::expect_error(ErrorKind::kConfig, "l.txt, line 2: 'cat' is not a number",
                     [&] { read("1\ncat\n"); });
  test::expect_error(ErrorKind::kConfig, "l.txt, line 2: '2.5' is not a label",
                     [&] { read("1\r\n2.5\r\n"); });
  test::expect_error(ErrorKind::kConfig, "l.txt, line 1: '1;2' is not a number",
                     [&] { read("1;2"); });
  test::expect_error(ErrorKind::kConfig, "UTF-16", [&] {
    read(
        std::string("\xff\xfe"
                    "1\0\n\0",
                    6));
  });
  test::expect_error(ErrorKind::kConfig, "no numbers", [&] { read("\xef\xbb\xbf\r\n"); });
  write_file_atomic(config.file, "1\n77\n");
  config = with_file_read(config);
  test::expect_error(ErrorKind::kConfig, "line 2: label 77",
                     [&] { make_labels(config, 10, RandomStreams(1), 0, 0); });
}

// Every diffusion form leaves the marginals alone: a Gaussian comes out as itself up to the order
// of the step.
TEST(sampler_sde, EveryDiffusionFormGivesTheSameLaw) {
  const ExactProblem p = line_gaussian(false);
  for (const std::string& form : diffusion_forms()) {
    for (const std::string& name : {std::string("sde-euler"), std::string("sde-heun")}) {
      SamplerConfig config;
      config.name = name;
      config.steps = 200;
      config.sde.form = form;
      config.sde.last_step_size = 0.01;
      DrawOptions options;
      options.n = 2000;
      options.chunk = 1000;
      const at::Tensor x =
          draw(*p.base, config, *p.path, {1}, RandomStreams(3), no_labels(), options).x;
      EXPECT_NEAR(x.mean().item<double>(), 0.5, 4 * 0.7 / std::sqrt(2000.0) + 0.01)
          << form << " " << name;  // four standard errors and O(h)
      EXPECT_NEAR(x.std().item<double>(), 0.7, 4 * 0.7 / std::sqrt(4000.0) + 0.01)
          << form << " " << name;
    }
  }
  SamplerConfig none;
  none.name = "sde-euler";
  test::expect_error(ErrorKind::kConfig, "no transition table", [&] { table_of(none, *p.path); });
}

}  // namespace tiltflow
