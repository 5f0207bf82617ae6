// End points noised anew: x_t = alpha x_1 + beta x_0 with fresh x_0 and times, as the methods that
// never look at whole paths need them.
#pragma once

#include <vector>

#include "tiltflow/finetune/method.h"

namespace tiltflow {

struct Noised {
  at::Tensor t, state, noise;      // [n], like x_1, like x_1
  std::vector<PathPoint> points;   // n
  at::Tensor flow_target() const;  // alpha' x_1 + beta' x_0: what flow matching regresses on
  at::Tensor x_1;
};
// `count` noisings of the samples first.. of step `key`; times are stratified over the noisings of
// a sample. `shared` > 1: runs of so many samples get the time and the noise of the run's first.
std::vector<Noised> noise_anew(const FinetuneContext& context, std::uint32_t key,
                               std::int64_t first, const at::Tensor& x_1, std::int64_t count,
                               std::int64_t shared = 1);

// Velocity target of Adjoint Matching with the linear base N(0, I), whose adjoint is known: v_lin +
// (eta alpha / (alpha^2 + beta^2)) end_gradient, which is minus the adjoint at the end point.
at::Tensor linear_base_target(const Noised& noised, const at::Tensor& end_gradient);
// v_lin alone: (alpha alpha' + beta beta') / (alpha^2 + beta^2) x, the velocity of N(0, I).
at::Tensor standard_normal_velocity(const std::vector<PathPoint>& points, const at::Tensor& x);
// Is the field that of N(0, I)? Compared at a few points.
bool is_standard_normal(const VelocityField& field, const Path& path, at::IntArrayRef shape);

// Velocities of the tuned model at all noised states, in one call with graph.
std::vector<at::Tensor> velocities_of_noised(const FinetuneContext& context, const Batch& batch);

}  // namespace tiltflow
