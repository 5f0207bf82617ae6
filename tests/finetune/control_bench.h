// Fields for control problems, and a context around a field whose velocities are parameters.
#pragma once

#include <cmath>

#include "tests/support.h"
#include "tiltflow/finetune/method.h"
#include "tiltflow/sampler/fields.h"
#include "tiltflow/sampler/sample.h"
#include "tiltflow/verify/control_problems.h"
#include "tiltflow/verify/problems.h"

namespace tiltflow::test {

inline const RandomStreams kSocStreams(5);

// The drift with `factor` times the exact control.
class Controlled final : public VelocityField {
 public:
  Controlled(const ControlProblem& problem, double factor) : problem_(problem), factor_(factor) {}
  at::Tensor velocity(const at::Tensor& x, const at::Tensor& t, const Condition& c) const override {
    const at::Tensor base = problem_.drift->velocity(x, t, c);
    const auto steps = static_cast<double>(problem_.table.steps.size() - 1);
    const auto k = static_cast<std::size_t>(std::llround(t[0].item<double>() * steps)) + 1;
    return base + (problem_.optimal_shift(k, x) * (factor_ / problem_.table.steps[k].c))
                      .to(x.scalar_type());
  }

 private:
  const ControlProblem& problem_;
  double factor_;
};

inline Batch collect_controlled(FinetuneMethod& method, const ControlProblem& problem,
                                double factor, std::int64_t n, std::int64_t step = 0) {
  Policy policy;
  policy.base = problem.drift;
  policy.tuned = std::make_shared<Controlled>(problem, factor);
  const auto path = make_path("linear");
  const LabelSource labels = no_labels();
  const FinetuneContext context{policy, *problem.reward,     *path,      problem.table, kSocStreams,
                                labels, {problem.dimension}, at::kDouble};
  const at::NoGradGuard no_grad;
  method.begin_step(context, step, 0);
  return method.collect(context, step, 0, n, false);
}

// Velocities that are a leaf: the gradient of a loss in them is dL/dv itself.
class Leaf final : public VelocityField {
 public:
  mutable at::Tensor v;
  at::Tensor velocity(const at::Tensor& x, const at::Tensor&, const Condition&) const override {
    return v.defined() && v.sizes() == x.sizes() ? v : x * -0.3;
  }
};

struct LeafBench {
  ExactProblem problem = plane_modes(false);
  std::shared_ptr<Leaf> leaf = std::make_shared<Leaf>();
  Policy policy;
  TransitionTable table;
  LabelSource labels = no_labels();
  LeafBench() {
    policy.base = problem.base;
    policy.tuned = leaf;
    SamplerConfig sampler;
    sampler.steps = 5;
    table = table_of(sampler, *problem.path);
  }
  FinetuneContext context() const {
    return {policy, *problem.reward, *problem.path, table, kSocStreams, labels, {2}, at::kDouble};
  }
};

}  // namespace tiltflow::test
