// Rollouts of a transition table: states, and on request noises, velocities and the graphs of
// chosen steps.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

#include "tiltflow/flow/velocity_field.h"
#include "tiltflow/sampler/transition_table.h"
#include "tiltflow/tensor/random.h"

namespace tiltflow {

using NoiseSource = std::function<at::Tensor(int k)>;  // xi_k, shaped like the state

// Noise of samples first.. of `step`: independent of batch size and order.
NoiseSource keyed_noise(const RandomStreams& streams, std::uint32_t step, std::int64_t first,
                        const at::Tensor& x_0);
at::Tensor prior_sample(const RandomStreams& streams, std::uint32_t step, std::int64_t first,
                        std::int64_t n, at::IntArrayRef shape, at::ScalarType dtype = at::kFloat);

struct RolloutOptions {
  bool keep_states = false;      // X_0..X_K
  bool keep_noises = false;      // xi_0..xi_{K-1}
  bool keep_velocities = false;  // v(X_k, t_k)
  std::vector<bool> graphs;  // steps whose velocity is computed with a graph on the weights (the
                             // state is a constant)
};

struct Trajectory {
  at::Tensor last;                     // X_K
  at::Tensor before_last;              // X_{K-1}
  at::Tensor last_velocity;            // v(X_{K-1}, t_{K-1}); no graph
  std::vector<at::Tensor> states;      // K+1 or empty
  std::vector<at::Tensor> noises;      // K or empty
  std::vector<at::Tensor> velocities;  // K or empty; no graph
  std::vector<at::Tensor> with_graph;  // K or empty; undefined where no graph was asked for
};

// Cost: K network calls. The state itself never carries a graph.
Trajectory rollout(const VelocityField& field, const TransitionTable& table, at::Tensor x_0,
                   const Condition& condition, const NoiseSource& noise,
                   const RolloutOptions& options = {});

// log N(next; p x + c v, s^2 I) per sample, [N]. Throws kFailure for a noiseless step.
at::Tensor transition_log_density(const Transition& step, const at::Tensor& x,
                                  const at::Tensor& velocity, const at::Tensor& next);

// |c (v_tuned - v_base)|^2 / (2 s^2) per sample, [N]: the step's share of the KL between the two
// chains.
at::Tensor control_cost(const Transition& step, const at::Tensor& v_tuned,
                        const at::Tensor& v_base);

// log N(next; base mean, s^2) - log N(next; tuned mean, s^2) per sample, [N], for next drawn by the
// tuned chain with `noise`; its conditional mean is -control_cost.
at::Tensor path_log_ratio(const Transition& step, const at::Tensor& v_tuned,
                          const at::Tensor& v_base, const at::Tensor& noise);

}  // namespace tiltflow
