#include "tiltflow/verify/tabular.h"

#include <algorithm>
#include <cmath>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {

TabularField::TabularField(std::shared_ptr<const VelocityField> base, std::vector<double> times,
                           double low, double high, std::int64_t nodes)
    : base_(std::move(base)),
      times_(std::move(times)),
      low_(low),
      high_(high),
      table_(at::zeros({static_cast<std::int64_t>(times_.size()), nodes}, at::kDouble)) {}

std::int64_t TabularField::step_of(double t) const {
  for (std::size_t k = 0; k < times_.size(); ++k) {
    if (std::abs(times_[k] - t) < 1e-9) return static_cast<std::int64_t>(k);
  }
  fail(ErrorKind::kFailure, cat("the tabular control has no entry for t = ", t));
}

at::Tensor TabularField::velocity(const at::Tensor& x, const at::Tensor& t,
                                  const Condition& condition) const {
  const at::Tensor row = table_[step_of(t[0].item<double>())];
  const std::int64_t nodes = row.size(0);
  const at::Tensor position =
      ((x.flatten() - low_) * (static_cast<double>(nodes - 1) / (high_ - low_)))
          .clamp(0, static_cast<double>(nodes - 1));
  const at::Tensor floor = position.floor().clamp_max(static_cast<double>(nodes - 2));
  const at::Tensor weight = position - floor;
  const at::Tensor left = floor.to(at::kLong);
  const at::Tensor control =
      row.index_select(0, left) * (1 - weight) + row.index_select(0, left + 1) * weight;
  return base_->velocity(x, t, condition) + control.view_as(x);
}

TabularVariant sound_variant(const TransitionTable& table) { return {table, table}; }

namespace {

constexpr double kLow = -7;
constexpr double kHigh = 7;
constexpr int kNodes = 701;
constexpr int kQuadrature = 49;
constexpr int kSweeps = 60;

// Linear interpolation on the nodes, constant outside.
double interpolate(const std::vector<double>& values, double x) {
  const double position =
      std::clamp((x - kLow) * (kNodes - 1) / (kHigh - kLow), 0.0, static_cast<double>(kNodes - 1));
  const auto left =
      std::min(static_cast<std::size_t>(position), static_cast<std::size_t>(kNodes - 2));
  const double weight = position - static_cast<double>(left);
  return values[left] * (1 - weight) + values[left + 1] * weight;
}

// E f(center + s xi): the trapezoidal rule, spectrally accurate against a Gaussian.
double expectation(const std::vector<double>& values, double center, double s) {
  if (s == 0) return interpolate(values, center);
  double sum = 0;
  double mass = 0;
  for (int i = 0; i < kQuadrature; ++i) {
    const double xi = -5.5 + 11.0 * i / (kQuadrature - 1);
    const double w = std::exp(-0.5 * xi * xi);
    sum += w * interpolate(values, center + s * xi);
    mass += w;
  }
  return sum / mass;
}

std::vector<double> to_vector(const at::Tensor& x) {
  const at::Tensor flat = x.to(at::kDouble).contiguous();
  return {flat.data_ptr<double>(), flat.data_ptr<double>() + flat.numel()};
}

}  // namespace

std::shared_ptr<TabularField> solve_tabular(const ExactProblem& problem,
                                            const TabularVariant& variant) {
  const at::NoGradGuard no_grad;
  const std::vector<Transition>& steps = variant.rollout_table.steps;
  std::vector<double> times;
  for (const Transition& step : steps) times.push_back(step.t);
  auto field = std::make_shared<TabularField>(problem.base, times, kLow, kHigh, kNodes);
  const at::Tensor nodes = at::linspace(kLow, kHigh, kNodes, at::kDouble).view({-1, 1});
  const std::vector<double> x = to_vector(nodes);
  std::vector<double> A = to_vector(-problem.reward->score_and_gradient(nodes, {}).gradient);
  for (std::size_t k = steps.size(); k-- > 0;) {
    const Transition& s = steps[k];
    const Transition& adjoint = variant.adjoint_table.steps[k];
    const Vjp pass = problem.base->vjp(nodes, time_tensor(s.t, nodes), {}, at::ones_like(nodes));
    const std::vector<double> v = to_vector(pass.velocity);
    const std::vector<double> slope = to_vector(pass.input_gradient);
    const double h = (k + 1 < steps.size() ? steps[k + 1].t : variant.rollout_table.t_end) - s.t;
    std::vector<double> delta(kNodes, 0), expected(kNodes, 0);
    for (std::size_t i = 0; i < kNodes; ++i) {
      const double factor = adjoint.p + adjoint.c * slope[i];
      for (int sweep = 0; sweep < kSweeps; ++sweep) {
        // next state of the rollout that the method would train on
        expected[i] = variant.ode_rollout ? interpolate(A, x[i] + h * (v[i] + delta[i] / s.c))
                                          : expectation(A, s.p * x[i] + s.c * v[i] + delta[i], s.s);
        const double target = -s.s * s.s * expected[i] * (variant.same_pairing ? factor : 1);
        const double change = target - delta[i];
        delta[i] += 0.7 * change;
        if (std::abs(change) < 1e-12) break;
      }
    }
    for (std::size_t i = 0; i < kNodes; ++i) {
      double factor = adjoint.p + adjoint.c * slope[i];
      if (variant.tuned_jacobian) {
        const std::size_t left = i == 0 ? 0 : i - 1;
        const std::size_t right = i + 1 == kNodes ? i : i + 1;
        factor += (delta[right] - delta[left]) / (x[right] - x[left]);
      }
      A[i] = factor * expected[i];
    }
    field->table()[static_cast<std::int64_t>(k)].copy_(at::tensor(delta, at::kDouble) / s.c);
  }
  return field;
}

}  // namespace tiltflow
