// Adjoints and Jacobian products against autograd, finite differences and closed forms.
#include <cmath>

#include "tiltflow/base/strings.h"
#include "tiltflow/flow/time_grid.h"
#include "tiltflow/models/mlp/mlp.h"
#include "tiltflow/models/sit/sit.h"
#include "tiltflow/sampler/lean_adjoint.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/verify/checks.h"
#include "tiltflow/verify/problems.h"

namespace tiltflow {
namespace {

// A small SiT in double precision with every weight drawn, so that nothing is trivially zero.
std::unique_ptr<VelocityModel> small_sit() {
  SitConfig config;
  config.input_size = 8;
  config.patch_size = 2;
  config.in_channels = 2;
  config.hidden_size = 32;
  config.depth = 2;
  config.num_heads = 4;
  config.num_classes = 3;
  config.learn_sigma = true;
  const RandomStreams streams(5);
  ParameterSet weights;
  std::uint32_t key = 0;
  for (const auto& [name, tensor] : init_sit(config, streams)) {
    weights.add(name, name == "pos_embed" ? tensor.to(at::kDouble)
                                          : streams.normal(Purpose::kInit, 77, ++key, 0, 1,
                                                           tensor.sizes(), at::kDouble)[0] *
                                                0.15);
  }
  return make_sit(config, weights);
}

double relative(const at::Tensor& a, const at::Tensor& b) {
  return ((a - b).abs().max() / b.abs().max()).item<double>();
}

VerifyRow unrolled_row(const std::string& name, const VelocityField& field,
                       const TransitionTable& table, at::IntArrayRef shape,
                       const Condition& condition,
                       const std::function<at::Tensor(const at::Tensor&)>& reward) {
  const RandomStreams streams(21);
  const at::Tensor x_0 = prior_sample(streams, 0, 0, 3, shape, at::kDouble);
  const NoiseSource noise = keyed_noise(streams, 0, 0, x_0);
  // the whole chain with a graph, noise frozen
  const at::AutoGradMode grad(true);
  std::vector<at::Tensor> states{x_0.detach().set_requires_grad(true)};
  for (int k = 0; k < table.size(); ++k) {
    const Transition& s = table.steps[static_cast<std::size_t>(k)];
    states.push_back(states.back() * s.p +
                     field.velocity(states.back(), time_tensor(s.t, x_0), condition) * s.c +
                     noise(k) * s.s);
  }
  const at::Tensor total = -reward(states.back()).sum();
  const auto exact = torch::autograd::grad({total}, states, {}, /*retain_graph=*/false);
  std::vector<at::Tensor> plain;
  for (const at::Tensor& state : states) plain.push_back(state.detach());
  const AdjointPass pass =
      lean_adjoint(field, table, plain, condition, exact.back(), {.to_start = true});
  double worst =
      0;  // relative to the terminal adjoint: a_0 of a memoryless chain is zero up to rounding
  for (std::size_t k = 0; k < exact.size(); ++k) {
    worst = std::max(
        worst,
        ((pass.adjoints[k] - exact[k]).abs().max() / exact.back().abs().max()).item<double>());
  }
  return {name, "lean adjoint - unrolled autograd, relative", 0, {worst, 0}, 1e-6, false, ""};
}

VerifyRow difference_row(const std::string& name, const VelocityField& field, at::IntArrayRef shape,
                         const Condition& condition) {
  const RandomStreams streams(22);
  const at::Tensor x = prior_sample(streams, 1, 0, 3, shape, at::kDouble);
  const at::Tensor cotangent = prior_sample(streams, 2, 0, 3, shape, at::kDouble);
  const at::Tensor tangent = prior_sample(streams, 3, 0, 3, shape, at::kDouble);
  double worst = 0;
  for (const double t : {0.07, 0.5, 0.93}) {
    const at::Tensor time = time_tensor(t, x);
    const double along =
        (field.vjp(x, time, condition, cotangent).input_gradient * tangent).sum().item<double>();
    const at::NoGradGuard no_grad;
    const double h = 1e-5;
    const at::Tensor jvp = (field.velocity(x + tangent * h, time, condition) -
                            field.velocity(x - tangent * h, time, condition)) /
                           (2 * h);
    const double numeric = (jvp * cotangent).sum().item<double>();
    worst = std::max(worst, std::abs(along - numeric) / std::max(1e-12, std::abs(numeric)));
  }
  return {name, "vjp - central differences, relative", 0, {worst, 0}, 1e-6, false, ""};
}

std::vector<VerifyRow> mixture_rows() {
  std::vector<VerifyRow> rows;
  for (const std::string& path : path_names()) {
    const ExactProblem p = make_problem("2-D mixture", plane_modes(true).base->mixture(),
                                        plane_modes(true).form, path);
    const std::string name = cat("2-D mixture, ", path);
    rows.push_back(unrolled_row(name, *p.base, make_table("auto", *p.path, uniform_grid(12)), {2},
                                {}, [&](const at::Tensor& x) { return evaluate(p.form, x); }));
    rows.push_back(difference_row(name, *p.base, {2}, {}));
    // the optimal control from the value function must equal (2/sigma)(v* - v_base)
    const RandomStreams streams(23);
    const at::Tensor x = prior_sample(streams, 0, 0, 16, {2}, at::kDouble);
    const MixtureField tuned(p.target.law, p.path);
    double worst = 0;
    for (const double t : {0.1, 0.5, 0.9}) {
      const double sigma = std::sqrt(2 * p.path->at(t).eta());
      const at::Tensor u = optimal_control(p.base->mixture(), *p.path, p.form, x, t);
      worst = std::max(worst, relative((tuned.velocity(x, time_tensor(t, x), {}) -
                                        p.base->velocity(x, time_tensor(t, x), {})) *
                                           (2 / sigma),
                                       u));
    }
    rows.push_back(
        {name, "(2/sigma)(v* - v) against -sigma grad V", 0, {worst, 0}, 1e-8, false, ""});
  }
  return rows;
}

std::vector<VerifyRow> network_rows() {
  const auto sit = small_sit();
  const Condition labels{at::tensor(std::vector<std::int64_t>{0, 2, 3}, at::kLong)};
  const auto path = make_path("linear");
  const auto reward = [](const at::Tensor& x) {
    return -0.15 * (x - 0.3).square().flatten(1).sum(1) + x.flatten(1).sin().sum(1) * 0.1;
  };
  const MlpConfig shape{3, 24, 2, 4};
  ParameterSet weights;
  for (const auto& [name, tensor] : init_mlp(shape, RandomStreams(6))) {
    weights.add(name, tensor.to(at::kDouble) + 0.1);
  }
  const auto mlp = make_mlp(shape, weights);
  return {
      unrolled_row("SiT, fp64", *sit, memoryless_euler(*path, uniform_grid(8)), {2, 8, 8}, labels,
                   reward),
      difference_row("SiT, fp64", *sit, {2, 8, 8}, labels),
      unrolled_row("MLP, fp64", *mlp, memoryless_euler(*path, uniform_grid(8)), {3}, {}, reward),
      difference_row("MLP, fp64", *mlp, {3}, {})};
}

// Gaussian base, linear reward: a(t) = -alpha s^2 / (alpha^2 s^2 + beta^2) w, deterministic.
std::vector<VerifyRow> gaussian_rows() {
  const ExactProblem p = line_gaussian(false);
  const int steps = 1000;
  const TransitionTable table = make_table("auto", *p.path, uniform_grid(steps));
  const RandomStreams streams(24);
  const at::Tensor x_0 = prior_sample(streams, 0, 0, 4, {1}, at::kDouble);
  RolloutOptions keep;
  keep.keep_states = true;
  const Trajectory path = rollout(*p.base, table, x_0, {}, keyed_noise(streams, 0, 0, x_0), keep);
  const AdjointPass pass =
      lean_adjoint(*p.base, table, path.states, {}, -p.form.linear.expand({4, 1}));
  double worst = 0;
  for (const double t : {0.2, 0.4, 0.6, 0.8}) {
    const PathPoint point = p.path->at(t);
    const double exact =
        -1.5 * point.alpha * 0.49 / (point.alpha * point.alpha * 0.49 + point.beta * point.beta);
    const at::Tensor found = pass.adjoints[static_cast<std::size_t>(std::lround(t * steps))];
    worst = std::max(worst, (found / exact - 1).abs().max().item<double>());
  }
  return {
      {p.name, "adjoint against closed form, relative (K=1000)", 0, {worst, 0}, 0.01, false, ""}};
}

}  // namespace

std::vector<VerifyTask> adjoint_checks(bool) {
  return {{"adjoint, mixtures", mixture_rows},
          {"adjoint, networks", network_rows},
          {"adjoint, Gaussian", gaussian_rows}};
}

}  // namespace tiltflow
