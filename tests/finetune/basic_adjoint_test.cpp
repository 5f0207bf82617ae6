#include <cmath>

#include "tests/finetune/control_bench.h"
#include "tests/finetune/method_bench.h"
#include "tests/support.h"
#include "tiltflow/finetune/basic_adjoint.h"
#include "tiltflow/models/mlp/mlp.h"
#include "tiltflow/sampler/sample.h"
#include "tiltflow/verify/control_problems.h"
#include "tiltflow/verify/problems.h"

namespace tiltflow {
namespace {

using test::dot_product;
using test::kSocStreams;
using test::MethodBench;

}  // namespace

// One step's graph at a time, and the same gradient to rounding.
TEST(finetune_basic_adjoint, BasicAdjointMatchingIsTheDiscreteAdjoint) {
  const MethodBench b(at::kDouble);
  DirectGradient chain("discrete-adjoint", {});
  BasicAdjointMatching basic;
  const std::vector<at::Tensor> g = b.gradient(chain);
  const std::vector<at::Tensor> h = b.gradient(basic);
  for (std::size_t i = 0; i < g.size(); ++i) {
    EXPECT_LT((g[i] - h[i]).abs().max().item<double>(),
              1e-10 * (1 + g[i].abs().max().item<double>()));
  }
  AdjointMatchingConfig c = adjoint_matching_preset("exact", 6);
  c.loss_steps = 0;
  AdjointMatching lean(c);
  EXPECT_GT(
      std::abs(dot_product(g, b.gradient(lean)) / dot_product(g, g) - 2.0 / 6),
      1e-5);  // the lean one (a mean over steps, no 1/2) is another gradient away from the optimum
}

// On a grid refined fourfold, twice, the two pairings' gradients come together.
TEST(finetune_basic_adjoint, ContinuousAdjointBecomesTheDiscreteOne) {
  const ExactProblem problem = plane_modes(false);
  ParameterSet weights;
  for (const auto& [name, tensor] : init_mlp({2, 16, 2, 4}, RandomStreams(1))) {
    weights.add(name, (tensor + 0.02).to(at::kDouble));
  }
  const Policy policy =
      side_policy(problem.base, *make_mlp({2, 16, 2, 4}, weights), make_path("linear"));
  const LabelSource labels = no_labels();
  std::vector<double> difference;
  for (const int steps : {6, 24, 96}) {
    SamplerConfig sampler;
    sampler.steps = steps;
    const TransitionTable table = table_of(sampler, *problem.path);
    const FinetuneContext context{policy,      *problem.reward, *problem.path, table,
                                  kSocStreams, labels,          {2},           at::kDouble};
    std::vector<at::Tensor> flat;
    for (const bool continuous : {false, true}) {
      const at::AutoGradMode grad(true);
      BasicAdjointMatching method(continuous);
      const at::Tensor loss =
          method.loss(context, method.collect(context, 0, 0, 2000, false), 2000).loss;
      std::vector<at::Tensor> parts;
      for (const at::Tensor& g : torch::autograd::grad({loss}, policy.trainable.tensors())) {
        parts.push_back(g.flatten());
      }
      flat.push_back(at::cat(parts));
    }
    difference.push_back(((flat[1] - flat[0]).norm() / flat[0].norm()).item<double>());
  }
  EXPECT_GT(difference[0], 0.02);
  EXPECT_LT(difference[1], 0.6 * difference[0]);
  EXPECT_LT(difference[2], 0.6 * difference[1]);
}

}  // namespace tiltflow
