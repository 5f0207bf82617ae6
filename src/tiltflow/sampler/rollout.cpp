#include "tiltflow/sampler/rollout.h"

#include <cmath>
#include <numbers>

#include "tiltflow/base/error.h"
#include "tiltflow/base/signals.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {

NoiseSource keyed_noise(const RandomStreams& streams, std::uint32_t step, std::int64_t first,
                        const at::Tensor& x_0) {
  const std::int64_t n = x_0.size(0);
  const std::vector<std::int64_t> shape = x_0.sizes().slice(1).vec();
  return [=, dtype = x_0.scalar_type()](int k) {
    return streams.normal(Purpose::kTransition, step, static_cast<std::uint32_t>(k), first, n,
                          shape, dtype);
  };
}

at::Tensor prior_sample(const RandomStreams& streams, std::uint32_t step, std::int64_t first,
                        std::int64_t n, at::IntArrayRef shape, at::ScalarType dtype) {
  return streams.normal(Purpose::kPrior, step, 0, first, n, shape, dtype);
}

Trajectory rollout(const VelocityField& field, const TransitionTable& table, at::Tensor x,
                   const Condition& condition, const NoiseSource& noise,
                   const RolloutOptions& options) {
  Trajectory out;
  if (!options.graphs.empty()) out.with_graph.resize(table.steps.size());
  const at::NoGradGuard no_grad;
  for (int k = 0; k < table.size(); ++k) {
    check_stop();
    const Transition& step = table.steps[static_cast<std::size_t>(k)];
    const at::Tensor t = time_tensor(step.t, x);
    if (options.keep_states) out.states.push_back(x);
    at::Tensor v;
    if (!options.graphs.empty() && options.graphs[static_cast<std::size_t>(k)]) {
      const at::AutoGradMode grad(true);
      out.with_graph[static_cast<std::size_t>(k)] = field.velocity(x, t, condition);
      v = out.with_graph[static_cast<std::size_t>(k)].detach();
    } else {
      v = field.velocity(x, t, condition);
    }
    if (options.keep_velocities) out.velocities.push_back(v);
    if (k + 1 == table.size()) {
      out.before_last = x;
      out.last_velocity = v;
    }
    x = x * step.p + v * step.c;
    if (step.s > 0) {
      const at::Tensor xi = noise(k);
      if (options.keep_noises) out.noises.push_back(xi);
      x = x.add_(xi, step.s);
    }
  }
  if (options.keep_states) out.states.push_back(x);
  out.last = x;
  return out;
}

at::Tensor transition_log_density(const Transition& step, const at::Tensor& x,
                                  const at::Tensor& velocity, const at::Tensor& next) {
  if (!(step.s > 0)) fail(ErrorKind::kFailure, "a noiseless step has no density");
  const at::Tensor residual = (next - x * step.p - velocity * step.c).flatten(1) / step.s;
  const double d = static_cast<double>(residual.size(1));
  return -0.5 * residual.square().sum(1) -
         d * (std::log(step.s) + 0.5 * std::log(2 * std::numbers::pi));
}

at::Tensor control_cost(const Transition& step, const at::Tensor& v_tuned,
                        const at::Tensor& v_base) {
  return (v_tuned - v_base).flatten(1).square().sum(1) * (step.c * step.c / (2 * step.s * step.s));
}

at::Tensor path_log_ratio(const Transition& step, const at::Tensor& v_tuned,
                          const at::Tensor& v_base, const at::Tensor& noise) {
  const at::Tensor control = (v_tuned - v_base) * (step.c / step.s);
  return -(control * (noise + control * 0.5)).flatten(1).sum(1);
}

}  // namespace tiltflow
