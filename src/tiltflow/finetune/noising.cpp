#include "tiltflow/finetune/noising.h"

#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

at::Tensor coefficient(const Noised& n, double PathPoint::* member) {
  return path_coefficient(n.points, [member](const PathPoint& p) { return p.*member; }, n.x_1);
}
double square(const PathPoint& p) { return p.alpha * p.alpha + p.beta * p.beta; }

}  // namespace

at::Tensor Noised::flow_target() const {
  return coefficient(*this, &PathPoint::d_alpha) * x_1 +
         coefficient(*this, &PathPoint::d_beta) * noise;
}

std::vector<Noised> noise_anew(const FinetuneContext& context, std::uint32_t key,
                               std::int64_t first, const at::Tensor& x_1, std::int64_t count,
                               std::int64_t shared) {
  const std::int64_t n = x_1.size(0);
  const auto spread = [&](const at::Tensor& x) {
    return shared == 1 ? x : x.slice(0, 0, n, shared).repeat_interleave(shared, 0);
  };
  const at::Tensor u = context.streams.uniform(Purpose::kTime, key, first, n, {count});
  std::vector<Noised> out;
  for (std::int64_t j = 0; j < count; ++j) {
    Noised one;
    one.x_1 = x_1;
    one.t = spread((u.select(1, j) + static_cast<double>(j)) / static_cast<double>(count))
                .clamp(1e-3, 1 - 1e-3)
                .to(context.dtype);
    one.noise = spread(context.streams.normal(Purpose::kTransition, key,
                                              (1U << 20) + static_cast<std::uint32_t>(j), first, n,
                                              context.sample_shape, context.dtype));
    one.points = path_points(context.path, one.t);
    one.state =
        coefficient(one, &PathPoint::alpha) * x_1 + coefficient(one, &PathPoint::beta) * one.noise;
    out.push_back(std::move(one));
  }
  return out;
}

at::Tensor standard_normal_velocity(const std::vector<PathPoint>& points, const at::Tensor& x) {
  return path_coefficient(
             points,
             [](const PathPoint& p) {
               return (p.alpha * p.d_alpha + p.beta * p.d_beta) / square(p);
             },
             x) *
         x;
}

bool is_standard_normal(const VelocityField& field, const Path& path, at::IntArrayRef shape) {
  const at::NoGradGuard no_grad;
  const at::Tensor x = prior_sample(RandomStreams(0), 0, 0, 8, shape);
  const at::Tensor t = at::linspace(0.1, 0.9, 8, x.options());
  return at::allclose(field.velocity(x, t, {}), standard_normal_velocity(path_points(path, t), x),
                      1e-3, 1e-3);
}

at::Tensor linear_base_target(const Noised& n, const at::Tensor& end_gradient) {
  return standard_normal_velocity(n.points, n.state) +
         path_coefficient(
             n.points, [](const PathPoint& p) { return p.beta_d / square(p); }, n.x_1) *
             end_gradient;
}

std::vector<at::Tensor> velocities_of_noised(const FinetuneContext& context, const Batch& batch) {
  const std::vector<at::Tensor> labels(batch.states.size(), batch.labels);
  const Condition condition{batch.labels.defined() ? at::cat(labels) : at::Tensor()};
  return context.policy.tuned->velocity(at::cat(batch.states), at::cat(batch.times), condition)
      .split_with_sizes(std::vector<std::int64_t>(batch.states.size(), batch.n));
}

}  // namespace tiltflow
