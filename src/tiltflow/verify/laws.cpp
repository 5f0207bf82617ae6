#include "tiltflow/verify/laws.h"

#include <cmath>

#include "tiltflow/base/strings.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {

SampledLaw sample_law(const VelocityField& field, const TransitionTable& table,
                      std::int64_t dimension, std::int64_t n, std::uint64_t seed,
                      const VelocityField* base) {
  const at::NoGradGuard no_grad;
  const RandomStreams streams(seed);
  const at::Tensor x_0 = prior_sample(streams, 0, 0, n, {dimension}, at::kDouble);
  RolloutOptions keep;
  keep.keep_states = keep.keep_velocities = base != nullptr;
  const Trajectory path = rollout(field, table, x_0, {}, keyed_noise(streams, 0, 0, x_0), keep);
  SampledLaw out{path.last, {}};
  if (base) {
    out.cost = at::zeros({n}, at::kDouble);
    for (std::size_t k = 0; k < table.steps.size(); ++k) {
      out.cost += control_cost(
          table.steps[k], path.velocities[k],
          base->velocity(path.states[k], time_tensor(table.steps[k].t, path.states[k]), {}));
    }
  }
  return out;
}

Estimate tilted_weight(const ExactProblem& problem, const at::Tensor& x, double* exact) {
  const std::int64_t gained =
      (problem.target.law.weights - problem.base->mixture().weights).argmax().item<std::int64_t>();
  *exact = problem.target.law.weights[gained].item<double>();
  return mean_estimate(responsibilities(problem.target.law, x).select(1, gained));
}

namespace {

// The rows of one law, in their order.
struct LawRows {
  const ExactProblem& problem;
  const std::string& name;
  const SampledLaw& law;
  const LawTolerances& tolerances;
  const ChainOptimum* chain;
  std::vector<VerifyRow> rows{};

  const GaussianMixture& target() const { return problem.target.law; }

  void add(const std::string& quantity, double exact, Estimate obtained, double tolerance) {
    rows.push_back({name, quantity, exact, obtained, tolerance + 3 * obtained.se, false, ""});
  }

  void mode_weight() {
    double exact = 0;
    const Estimate weight = tilted_weight(problem, law.x, &exact);
    add("mode weight", exact, weight, tolerances.weight);
  }

  void mean_rows() {
    const at::Tensor base_mean = mean(problem.base->mixture());
    const at::Tensor exact_mean = mean(target());
    const at::Tensor shift = exact_mean - base_mean;
    if (problem.dimension() == 1) {
      add("mean", exact_mean[0].item<double>(), mean_estimate(law.x.flatten()),
          tolerances.mean_fraction *
              std::max(std::abs(exact_mean[0].item<double>()), shift.abs()[0].item<double>()));
      return;
    }
    const at::Tensor along = at::matmul(law.x - base_mean, shift / shift.norm());
    const double size = shift.norm().item<double>();
    add("mean along the shift", size, mean_estimate(along),
        tolerances.mean_fraction * std::max(size, exact_mean.norm().item<double>()));
    if (chain) {
      const double best = (chain->mean - base_mean).dot(shift / shift.norm()).item<double>();
      add("mean along the shift, of the chain's optimum", best, mean_estimate(along), 0.02 * size);
    }
  }

  void covariance_row() {
    const at::Tensor exact = covariance(target());
    const at::Tensor found = at::cov(law.x.t()).reshape_as(exact);
    const double d = static_cast<double>(problem.dimension());
    add("|cov - cov*| / |cov*|", 0,
        {((found - exact).norm() / exact.norm()).item<double>(),
         std::sqrt((d + 1) / static_cast<double>(law.x.size(0)))},
        tolerances.covariance_fraction);
  }

  void cost_rows() {
    const double kl = problem.target.kl();
    add("control cost against KL", kl, mean_estimate(law.cost), tolerances.cost_fraction * kl);
    const Estimate net = mean_estimate(problem.reward->score(law.x, {}).to(at::kDouble) - law.cost);
    add("gap certificate (nats)", chain ? chain->gap(problem) : 0,
        {problem.target.log_z - net.value, net.se}, tolerances.gap);
    if (chain) rows.back().remark = "exact: of the chain's optimum";
  }

  // A mode whose weight is off by w, as the mode weight's tolerance allows, costs sqrt(w) times
  // the way to the next mode.
  double way_between_modes() const {
    if (target().components() == 1) return 0;
    const at::Tensor& means = target().means;
    return (means.unsqueeze(0) - means.unsqueeze(1)).norm(2, 2).max().item<double>() /
           std::sqrt(static_cast<double>(problem.dimension()));
  }

  void distance_row() {
    const std::int64_t n = std::min<std::int64_t>(law.x.size(0), 20000);
    const RandomStreams streams(99);
    const at::Tensor directions =
        streams.normal(Purpose::kProbe, 1, 0, 0, 256, {problem.dimension()}, at::kDouble);
    const at::Tensor one = sample(target(), streams, 1, n);
    const at::Tensor two = sample(target(), streams, 2, n);
    const double floor = sliced_wasserstein(one, two, directions);
    const double found = sliced_wasserstein(law.x.narrow(0, 0, n), one, directions);
    const double d = static_cast<double>(problem.dimension());
    const double scale = std::sqrt(covariance(target()).trace().item<double>() / d);
    rows.push_back({name,
                    "sliced W2",
                    0,
                    {found, 0},
                    floor + 0.06 * scale + std::sqrt(tolerances.weight) * way_between_modes(),
                    false,
                    cat("floor ", compact(floor, 2))});
  }
};

}  // namespace

std::vector<VerifyRow> law_rows(const ExactProblem& problem, const std::string& name,
                                const SampledLaw& law, const LawTolerances& tolerances,
                                bool with_distance, const ChainOptimum* chain) {
  LawRows out{problem, name, law, tolerances, chain};
  if (problem.target.law.components() > 1) out.mode_weight();
  out.mean_rows();
  out.covariance_row();
  if (law.cost.defined()) out.cost_rows();
  if (with_distance) out.distance_row();
  return std::move(out.rows);
}

}  // namespace tiltflow
