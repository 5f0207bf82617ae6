// Limits: rewards that change nothing, discretisation bias that falls with the step, independence
// of start and end.
#include <cmath>

#include "tiltflow/base/strings.h"
#include "tiltflow/flow/time_grid.h"
#include "tiltflow/sampler/lean_adjoint.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/verify/checks.h"
#include "tiltflow/verify/laws.h"
#include "tiltflow/verify/trained.h"

namespace tiltflow {
namespace {

struct Fixed {
  double shift, cost, variance;
};

// Fixed point of Adjoint Matching for a 1-D Gaussian base and linear reward: the adjoint is
// deterministic, so the optimum of the discrete problem follows from two scalar recursions. `same`:
// the a_k pairing.
Fixed linear_fixed_point(const ExactProblem& p, const TransitionTable& table, bool same = false) {
  const std::size_t steps = table.steps.size();
  std::vector<double> factor(steps), a(steps + 1);
  const at::Tensor x = at::zeros({1, 1}, at::kDouble);
  const at::Tensor one = at::ones({1, 1}, at::kDouble);
  a[steps] = -p.form.linear[0].item<double>();
  for (std::size_t k = steps; k-- > 0;) {
    const Transition& s = table.steps[k];
    factor[k] =
        s.p + s.c * p.base->vjp(x, time_tensor(s.t, x), {}, one).input_gradient.item<double>();
    a[k] = factor[k] * a[k + 1];
  }
  Fixed out{0, 0, 1};
  for (std::size_t k = 0; k < steps; ++k) {
    const double s2 = table.steps[k].s * table.steps[k].s;
    const double delta = -s2 * a[same ? k : k + 1];
    out.shift = factor[k] * out.shift + delta;
    out.cost += delta * delta / (2 * s2);
    out.variance = factor[k] * factor[k] * out.variance + s2;
  }
  return out;
}

VerifyRow plain_row(const std::string& problem, const std::string& quantity, double exact,
                    double found, double tolerance, const std::string& remark = "") {
  return {problem, quantity, exact, {found, 0}, tolerance, false, remark};
}

// Reference values computed independently of this code (docs/mathematics.md, table of
// integrators).
std::vector<VerifyRow> reference_rows(const ExactProblem& p) {
  struct Reference {
    std::string name;
    TransitionTable table;
    double shift, cost;
  };
  const std::vector<double> grid = uniform_grid(40);
  const std::vector<Reference> references{
      {"euler", memoryless_euler(*p.path, grid), 0.736, 0.552},
      {"euler-paper", memoryless_euler(*p.path, grid, Offsets::kPaper), 0.794, 0.595},
      {"exponential", exponential_integrator(*p.path, grid), 0.688, 0.516}};
  std::vector<VerifyRow> rows;
  for (const Reference& r : references) {
    const Fixed found = linear_fixed_point(p, r.table, false);
    rows.push_back(plain_row(p.name, cat(r.name, ": shift at K=40"), r.shift, found.shift, 6e-4,
                             "reference value"));
    rows.push_back(plain_row(p.name, cat(r.name, ": control cost at K=40"), r.cost, found.cost,
                             6e-4, "reference value"));
  }
  return rows;
}

// How fast a sampler's bias falls, from the two finest grids.
VerifyRow order_row(const ExactProblem& p, const std::string& sampler,
                    const std::vector<int>& grids, double exact_shift) {
  std::vector<double> errors;
  for (const int K : grids) {
    errors.push_back(std::abs(
        linear_fixed_point(p, make_table(sampler, *p.path, uniform_grid(K))).shift - exact_shift));
  }
  const std::size_t last = grids.size() - 1;
  const double order = std::log(errors[last - 1] / errors[last]) /
                       std::log(static_cast<double>(grids[last]) / grids[last - 1]);
  return plain_row(p.name, cat(sampler, ": order of the bias in h"), 1, order, 0.25,
                   cat("bias ", compact(errors[0], 2), " at K=10, ", compact(errors[last], 2),
                       " at K=", grids[last]));
}

std::vector<VerifyRow> order_rows(bool full) {
  const ExactProblem p = line_gaussian(false);
  const double exact_shift = 0.735;
  std::vector<VerifyRow> rows = reference_rows(p);
  std::vector<int> grids{10, 20, 40, 80, 160};
  if (full) grids.insert(grids.end(), {320, 400});
  for (const char* sampler : {"exponential", "ancestral", "euler-paper"}) {
    rows.push_back(order_row(p, sampler, grids, exact_shift));
  }
  const Fixed fine = linear_fixed_point(p, memoryless_euler(*p.path, uniform_grid(400)));
  rows.push_back(plain_row(p.name, "euler: shift at K=400", exact_shift, fine.shift, 0.002));
  rows.push_back(plain_row(p.name, "euler: control cost against KL at K=400", p.target.kl(),
                           fine.cost, 0.002));
  const Fixed paired = linear_fixed_point(p, memoryless_euler(*p.path, uniform_grid(40)), true);
  rows.push_back(plain_row(p.name, "a_k pairing at K=40: shift", 0.735, paired.shift, 0.01,
                           "known bias of the pairing"));
  rows.back().negative_control = true;
  return rows;
}

std::vector<VerifyRow> nothing_rows() {
  const ExactProblem p = two_modes();
  TrainedOptions options;
  options.iterations = 15;
  options.batch = 64;
  options.steps = 20;
  options.reward_scale = 0;
  const TrainedControl zero = train_control(p, options);
  const RandomStreams streams(31);
  const at::Tensor x = prior_sample(streams, 0, 0, 64, {1}, at::kDouble);
  const at::NoGradGuard no_grad;
  double change = 0;
  for (const double t : {0.0, 0.3, 0.7}) {
    change = std::max(change, (zero.policy.tuned->velocity(x, time_tensor(t, x), {}) -
                               p.base->velocity(x, time_tensor(t, x), {}))
                                  .abs()
                                  .max()
                                  .item<double>());
  }
  std::vector<VerifyRow> rows{
      {p.name, "lambda = 0: change of the velocity", 0, {change, 0}, 0, false, "exactly zero"},
      {p.name, "lambda = 0: loss", 0, {zero.first_loss, 0}, 0, false, "exactly zero"}};
  options.reward_scale = 1;
  const TrainedControl one = train_control(p, options);
  rows.push_back({p.name,
                  "lambda = 1: change of the loss in 15 steps",
                  0,
                  {1 - one.last_loss / one.first_loss, 0},
                  1e-3,
                  true,
                  "the same run must learn"});
  // A constant is rejected at the start with an error, and has a zero adjoint.
  const ExactProblem constant =
      make_problem("constant r", p.base->mixture(), linear_form(at::zeros({1}, at::kDouble)));
  const double norm =
      constant.reward->score_and_gradient(x, {}).gradient.abs().max().item<double>();
  rows.push_back({"constant reward", "terminal adjoint", 0, {norm, 0}, 0, false, "exactly zero"});
  return rows;
}

double correlation(const at::Tensor& a, const at::Tensor& b) {
  return ((a - a.mean()) * (b - b.mean())).mean().item<double>() /
         (a.std(false) * b.std(false)).item<double>();
}

std::vector<VerifyRow> memoryless_rows() {
  std::vector<VerifyRow> rows;
  const std::int64_t n = 20000;
  const auto add = [&](const std::string& name, const ExactProblem& p, const TransitionTable& table,
                       bool control) {
    const at::Tensor start = prior_sample(RandomStreams(41), 0, 0, n, {1}, at::kDouble);
    const double rho =
        correlation(start.flatten(), sample_law(*p.base, table, 1, n, 41).x.flatten());
    rows.push_back({name,
                    "corr(X_0, X_1) of the base sampler",
                    0,
                    {rho, 1 / std::sqrt(static_cast<double>(n))},
                    0.03,
                    control,
                    ""});
  };
  for (const std::string& path : path_names()) {
    const ExactProblem p = line_gaussian(false, path);
    add(cat("1-D Gaussian, ", path), p, make_table("auto", *p.path, uniform_grid(40)), false);
  }
  const ExactProblem p = line_gaussian(false);
  add("sigma = 0.5", p, make_table("constant", *p.path, uniform_grid(40), 0.5), true);
  return rows;
}

}  // namespace

std::vector<VerifyTask> limit_checks(bool full) {
  return {{"limits, order in h", [full] { return order_rows(full); }},
          {"limits, no reward", nothing_rows},
          {"limits, memoryless", memoryless_rows}};
}

}  // namespace tiltflow
