#include "tiltflow/verify/control_problems.h"

#include <cmath>
#include <numbers>

#include "tiltflow/models/mlp/mlp.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

class Drift final : public VelocityField {
 public:
  explicit Drift(std::function<at::Tensor(const at::Tensor&)> of) : of_(std::move(of)) {}
  at::Tensor velocity(const at::Tensor& x, const at::Tensor&, const Condition&) const override {
    return of_(x);
  }

 private:
  std::function<at::Tensor(const at::Tensor&)> of_;
};

// The drift plus a network's output. With `gradient`, that of the reward, the network sees it too
// and answers with two parts, the second a factor on it (as in path integral samplers): the optimal
// control ends as that gradient, whose shape within a well a plain network takes very long to
// learn.
class WithNetwork final : public VelocityField {
 public:
  WithNetwork(std::shared_ptr<const VelocityField> drift,
              std::shared_ptr<const VelocityModel> network,
              std::function<at::Tensor(const at::Tensor&)> gradient)
      : drift_(std::move(drift)), network_(std::move(network)), gradient_(std::move(gradient)) {}
  at::Tensor velocity(const at::Tensor& x, const at::Tensor& t, const Condition& c) const override {
    const at::Tensor drift = drift_->velocity(x, t, c);
    if (!gradient_) return drift + network_->velocity(x, t, c);
    const at::Tensor gradient = gradient_(x);
    const std::vector<at::Tensor> parts =
        network_->velocity(at::cat({x, gradient}, 1), t, c).chunk(2, 1);
    return drift + parts[0] + parts[1] * gradient;
  }

 private:
  std::shared_ptr<const VelocityField> drift_;
  std::shared_ptr<const VelocityModel> network_;
  std::function<at::Tensor(const at::Tensor&)> gradient_;
};

class EndReward final : public Reward {
 public:
  explicit EndReward(std::function<at::Tensor(const at::Tensor&)> of) : of_(std::move(of)) {}
  const RewardInfo& info() const override { return info_; }
  at::Tensor score(const at::Tensor& x, const RewardCondition&) const override { return of_(x); }

 private:
  std::function<at::Tensor(const at::Tensor&)> of_;
  RewardInfo info_{"end cost", true, ""};
};

// Step 0 draws the start; then Euler steps of length h with unit noise.
TransitionTable euler_steps(int steps) {
  const double h = 1.0 / steps;
  TransitionTable out;
  out.name = "euler of a controlled process";
  out.steps.push_back({0, 0, 0, 0.5});
  for (int k = 0; k < steps; ++k) out.steps.push_back({k * h, 1, h, std::sqrt(h)});
  return out;
}

std::shared_ptr<const StateReward> end_reward(std::function<at::Tensor(const at::Tensor&)> of) {
  return std::make_shared<StateReward>(std::make_shared<EndReward>(std::move(of)),
                                       identity_decoder());
}

}  // namespace

ControlProblem ornstein_uhlenbeck(bool quadratic, int steps) {
  constexpr std::int64_t d = 4;
  ControlProblem p;
  p.name = quadratic ? "ou-quadratic" : "ou-linear";
  p.dimension = d;
  p.table = euler_steps(steps);
  const RandomStreams streams(7);
  const at::Tensor a = at::eye(d, at::kDouble) * -0.6 +
                       streams.normal(Purpose::kExact, 0, 0, 0, d, {d}, at::kDouble) * 0.3;
  const at::Tensor slope = at::tensor({1.0, -0.5, 0.8, 0.3}, at::kDouble);
  constexpr double kCurvature = 1.5;
  p.drift = std::make_shared<Drift>(
      [a](const at::Tensor& x) { return at::matmul(x, a.t().to(x.scalar_type())); });
  p.reward =
      quadratic
          ? end_reward([](const at::Tensor& x) { return x.square().sum(1) * (-0.5 * kCurvature); })
          : end_reward(
                [slope](const at::Tensor& x) { return at::matmul(x, slope.to(x.scalar_type())); });
  const double h = 1.0 / steps;
  const at::Tensor f = at::eye(d, at::kDouble) + a * h;
  const at::Tensor identity = at::eye(d, at::kDouble);  // X_{k+1} = F X_k + sqrt(h) xi
  // V_k = -1/2 x^T P_k x + q_k . x: the pairs of k+1, by Gaussian integrals from the end.
  std::vector<std::pair<at::Tensor, at::Tensor>> values(p.table.steps.size());
  at::Tensor big_p = quadratic ? identity * kCurvature : at::zeros({d, d}, at::kDouble);
  at::Tensor q = quadratic ? at::zeros({d}, at::kDouble) : slope.clone();
  for (std::size_t k = p.table.steps.size(); k-- > 0;) {
    values[k] = {big_p, q};
    if (k == 0) break;
    const at::Tensor gain = at::linalg_inv(identity + big_p * h);
    q = at::matmul(f.t(), at::matmul(gain, q));
    big_p = at::matmul(f.t(), at::matmul(gain, at::matmul(big_p, f)));
  }
  p.optimal_shift = [values, f, identity, h](std::size_t k, const at::Tensor& x) {
    const auto& [big_p, q] = values[k];
    const at::Tensor next = at::matmul(
        x.to(at::kDouble), f.t());  // base mean; optimal mean (I + h P)^{-1} (base mean + h q)
    return at::matmul(next + q * h, at::linalg_inv(identity + big_p * h).t()) - next;
  };
  return p;
}

ControlProblem double_well(int steps) {
  constexpr std::int64_t d = 10;
  ControlProblem p;
  p.name = "double-well";
  p.dimension = d;
  p.table = euler_steps(steps);
  const at::Tensor kappa = at::ones({d}, at::kDouble);
  const at::Tensor nu = at::ones({d}, at::kDouble);
  kappa.narrow(0, 0, 3).fill_(5);
  nu.narrow(0, 0, 3).fill_(3);
  p.drift = std::make_shared<Drift>([kappa](const at::Tensor& x) {
    return x * (1 - x.square()) * (kappa * 4).to(x.scalar_type());
  });
  p.reward = end_reward([nu](const at::Tensor& x) {
    return -((x.square() - 1).square() * nu.to(x.scalar_type())).sum(1);
  });
  p.reward_gradient = [nu](const at::Tensor& x) {
    return x * (1 - x.square()) * (nu * 4).to(x.scalar_type());
  };
  // Dimensions are independent; two kinds of them. Optimal mean of y given x: E[y e^V(y)] /
  // E[e^V(y)], y ~ N(x + h b(x), h), on a grid.
  const double h = 1.0 / steps;
  const double low = -3;
  const double high = 3;
  constexpr std::int64_t kPoints = 1201;
  const double spacing = (high - low) / static_cast<double>(kPoints - 1);
  const at::Tensor grid = at::linspace(low, high, kPoints, at::kDouble);
  std::vector<std::vector<at::Tensor>> shifts(2);  // kind -> step -> shift on the grid
  for (int kind = 0; kind < 2; ++kind) {
    const double stiff = kind == 0 ? 5 : 1;
    const double cost = kind == 0 ? 3 : 1;
    const at::Tensor mean = grid + grid * (1 - grid.square()) * (4 * stiff * h);
    const at::Tensor log_kernel = (grid.unsqueeze(0) - mean.unsqueeze(1)).square() * (-0.5 / h);
    at::Tensor value = (grid.square() - 1).square() * -cost;
    shifts[static_cast<std::size_t>(kind)].resize(p.table.steps.size());
    for (std::size_t k = p.table.steps.size(); k-- > 1;) {
      const at::Tensor joint = log_kernel + value.unsqueeze(0);
      const at::Tensor weights = at::softmax(joint, 1);
      shifts[static_cast<std::size_t>(kind)][k] = at::matmul(weights, grid) - mean;
      value = joint.logsumexp(1) - log_kernel.logsumexp(1);
    }
  }
  p.optimal_shift = [shifts, low, spacing](std::size_t k, const at::Tensor& x) {
    const at::Tensor place =
        ((x.to(at::kDouble) - low) / spacing).clamp(0, static_cast<double>(kPoints - 1) - 1e-9);
    const at::Tensor below = place.floor().to(at::kLong);
    const at::Tensor part = place - below;
    std::vector<at::Tensor> columns;
    for (std::int64_t i = 0; i < d; ++i) {
      const at::Tensor& s = shifts[i < 3 ? 0 : 1][k];
      const at::Tensor at_low = s.index_select(0, below.select(1, i));
      const at::Tensor at_high = s.index_select(0, below.select(1, i) + 1);
      columns.push_back(at_low + part.select(1, i) * (at_high - at_low));
    }
    return at::stack(columns, 1);
  };
  return p;
}

TrainedDrift train_drift(ControlProblem problem, const TrainedOptions& options) {
  TrainedDrift out{std::move(problem), {}};
  const MlpConfig shape{out.problem.dimension * (out.problem.reward_gradient ? 2 : 1),
                        options.hidden, options.depth, 6};
  ParameterSet weights;
  for (const auto& [name, tensor] : init_mlp(shape, RandomStreams(options.seed))) {
    weights.add(name, tensor.clone().requires_grad_(true));
  }
  out.policy.trainable = weights;
  out.policy.base = out.problem.drift;
  out.policy.tuned = std::make_shared<WithNetwork>(out.problem.drift, make_mlp(shape, weights),
                                                   out.problem.reward_gradient);
  const double scale = options.reward_scale;
  const auto scaled = scale == 1
                          ? out.problem.reward
                          : end_reward([scale, whole = out.problem.reward](const at::Tensor& x) {
                              return whole->reward().score(x, {}) * scale;
                            });
  train_policy(
      out.policy, *scaled, *make_path("linear"), out.problem.table,
      [](std::int64_t) { return no_labels(); }, out.problem.dimension, 0, options);
  return out;
}

Estimate control_error(const TrainedDrift& trained, std::int64_t n, std::uint64_t seed) {
  const at::NoGradGuard no_grad;
  const RandomStreams streams(seed);
  RolloutOptions keep;
  keep.keep_states = true;
  const at::Tensor x_0 = prior_sample(streams, 0, 0, n, {trained.problem.dimension});
  const Trajectory path = rollout(*trained.policy.tuned, trained.problem.table, x_0, {},
                                  keyed_noise(streams, 0, 0, x_0), keep);
  at::Tensor error = at::zeros({n}, at::kDouble);
  at::Tensor size = at::zeros({n}, at::kDouble);
  for (std::size_t k = 1; k < trained.problem.table.steps.size(); ++k) {
    const Transition& s = trained.problem.table.steps[k];
    const at::Tensor& x = path.states[k];
    const at::Tensor t = time_tensor(s.t, x);
    const at::Tensor shift =
        (trained.policy.tuned->velocity(x, t, {}) - trained.policy.base->velocity(x, t, {}))
            .to(at::kDouble) *
        s.c;
    const at::Tensor wanted = trained.problem.optimal_shift(k, x);
    error += (shift - wanted).square().sum(1);
    size += wanted.square().sum(1);
  }
  const double scale = size.mean().item<double>();
  const Estimate e = mean_estimate(error / scale);
  return e;
}

}  // namespace tiltflow
