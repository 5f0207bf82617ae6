#include "tiltflow/verify/gaussian_chain.h"

#include "tiltflow/base/error.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

// The base step of a Gaussian: x -> matrix x + offset.
struct AffineStep {
  at::Tensor matrix, offset;
};

AffineStep affine_step(const VelocityField& base, const Condition& condition,
                       const Transition& step, std::int64_t d) {
  const at::Tensor basis = at::cat({at::zeros({1, d}, at::kDouble), at::eye(d, at::kDouble)});
  const at::Tensor v =
      base.velocity(basis, time_tensor(step.t, basis),
                    {condition.labels.defined() ? condition.labels.expand({d + 1}) : at::Tensor()});
  const at::Tensor at_zero = v[0];
  return {at::eye(d, at::kDouble) * step.p + (v.narrow(0, 1, d) - at_zero).t() * step.c,
          at_zero * step.c};
}

}  // namespace

ChainOptimum gaussian_chain_optimum(const ExactProblem& problem, const TransitionTable& table) {
  if (problem.base->mixture().components() != 1) {
    fail(ErrorKind::kFailure,
         "the optimum of a chain in closed form needs a single Gaussian as base");
  }
  return affine_chain_optimum(*problem.base, {}, problem.form, table);
}

ChainOptimum affine_chain_law(const VelocityField& base, const Condition& condition,
                              const QuadraticForm& form, const TransitionTable& table) {
  return affine_chain_optimum(base, condition, linear_form(at::zeros_like(form.linear)),
                              table);  // nothing to gain: no control
}

ChainOptimum affine_chain_optimum(const VelocityField& base, const Condition& condition,
                                  const QuadraticForm& form, const TransitionTable& table) {
  const std::int64_t d = form.linear.size(0);
  const at::Tensor identity = at::eye(d, at::kDouble);
  const at::Tensor center = form.center;
  const std::size_t steps = table.steps.size();
  // Cost to go V_k(x) = x.P x / 2 + q.x + constant; a step minimises |delta|^2 / (2 s^2) + E V(y +
  // delta + s xi) at y = M x + n.
  std::vector<AffineStep> affine(steps);
  std::vector<at::Tensor> gain(steps), P(steps + 1), q(steps + 1);
  P[steps] = form.curvature;
  q[steps] = -form.linear - at::mv(form.curvature, center);
  for (std::size_t k = steps; k-- > 0;) {
    const Transition& step = table.steps[k];
    if (!(step.s > 0)) fail(ErrorKind::kFailure, "a step without noise cannot be controlled");
    affine[k] = affine_step(base, condition, step, d);
    gain[k] = at::linalg_inv(identity + P[k + 1] * (step.s * step.s));
    const at::Tensor curvature = at::matmul(P[k + 1], gain[k]);
    const at::Tensor slope = at::mv(gain[k], q[k + 1]);
    P[k] = at::matmul(affine[k].matrix.t(), at::matmul(curvature, affine[k].matrix));
    q[k] = at::mv(affine[k].matrix.t(), at::mv(curvature, affine[k].offset) + slope);
  }
  ChainOptimum out{at::zeros({d}, at::kDouble), identity.clone()};
  for (std::size_t k = 0; k < steps; ++k) {
    const double s2 = table.steps[k].s * table.steps[k].s;
    const at::Tensor y = at::mv(affine[k].matrix, out.mean) + affine[k].offset;
    const at::Tensor spread =
        at::matmul(affine[k].matrix, at::matmul(out.covariance, affine[k].matrix.t()));
    const at::Tensor weight = at::matmul(gain[k].t(), P[k + 1]);
    const at::Tensor push = at::mv(gain[k], at::mv(P[k + 1], y) + q[k + 1]);
    out.cost += 0.5 * s2 *
                (push.dot(push) + at::matmul(at::matmul(weight.t(), spread), weight).trace())
                    .item<double>();
    out.mean = y - push * s2;
    out.covariance = at::matmul(gain[k], at::matmul(spread, gain[k].t())) + identity * s2;
  }
  out.reward = evaluate(form, out.mean.unsqueeze(0)).item<double>() -
               0.5 * at::matmul(form.curvature, out.covariance).trace().item<double>();
  return out;
}

}  // namespace tiltflow
