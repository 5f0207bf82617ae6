// A field whose velocities are parameters, and a context around it: gradients of losses by hand.
#pragma once

#include "tests/support.h"
#include "tiltflow/models/mlp/mlp.h"
#include "tiltflow/sampler/sample.h"
#include "tiltflow/verify/problems.h"

namespace tiltflow::test {

inline const RandomStreams kMethodStreams(3);

// Velocities that are a leaf: the gradient of a loss in them is dL/dv itself.
class LeafField final : public VelocityField {
 public:
  mutable at::Tensor v;
  at::Tensor velocity(const at::Tensor& x, const at::Tensor&, const Condition&) const override {
    if (!v.defined() || v.sizes() != x.sizes()) return at::zeros_like(x);
    return v;
  }
};

// 2-D modes, a side network that already does something, everything in `dtype`.
struct MethodBench {
  ExactProblem problem = plane_modes(false);
  Policy policy;
  TransitionTable table;
  LabelSource labels = no_labels();
  at::ScalarType dtype;
  explicit MethodBench(at::ScalarType type = at::kFloat, int steps = 6) : dtype(type) {
    ParameterSet weights;
    for (const auto& [name, tensor] : init_mlp({2, 16, 2, 4}, RandomStreams(1))) {
      weights.add(name, (tensor + 0.02).to(type));
    }
    policy = side_policy(problem.base, *make_mlp({2, 16, 2, 4}, weights), make_path("linear"));
    SamplerConfig config;
    config.steps = steps;
    table = table_of(config, *problem.path);
  }
  FinetuneContext context() const {
    return {policy, *problem.reward, *problem.path, table, kMethodStreams, labels, {2}, dtype};
  }
  at::Tensor loss(FinetuneMethod& method, std::int64_t n = 8, std::int64_t step = 4) const {
    const at::AutoGradMode grad(true);
    method.begin_step(context(), step, 0);
    return method.loss(context(), method.collect(context(), step, 0, n, false), n).loss;
  }
  std::vector<at::Tensor> gradient(FinetuneMethod& method, std::int64_t n = 8,
                                   std::int64_t step = 4) const {
    return torch::autograd::grad({loss(method, n, step)}, policy.trainable.tensors());
  }
};

inline double dot_product(const std::vector<at::Tensor>& a, const std::vector<at::Tensor>& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += (a[i] * b[i]).sum().item<double>();
  return sum;
}

}  // namespace tiltflow::test
