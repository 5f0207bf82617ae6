#include <cmath>
#include <set>

#include "tests/finetune/control_bench.h"
#include "tests/finetune/method_bench.h"
#include "tests/support.h"
#include "tiltflow/finetune/direct_gradient.h"
#include "tiltflow/verify/control_problems.h"

namespace tiltflow {
namespace {

using test::dot_product;
using test::kMethodStreams;
using test::LeafBench;
using test::MethodBench;

}  // namespace

// Central differences in double, with common random numbers: the loss as a function of the weights,
// path included.
TEST(finetune_direct_gradient, GradientsAgreeWithCentralDifferences) {
  for (const std::string& name : {std::string("draft"), std::string("discrete-adjoint")}) {
    const MethodBench b(at::kDouble);
    DirectGradientConfig c;
    c.last = 0;
    c.preserve = name == "draft" ? 0.3 : 0;
    DirectGradient method(name, c);
    const std::vector<at::Tensor> g = b.gradient(method);
    std::vector<at::Tensor> direction;
    std::uint32_t key = 0;
    for (const at::Tensor& w : b.policy.trainable.tensors()) {
      direction.push_back(
          kMethodStreams.normal(Purpose::kProbe, ++key, 0, 0, 1, w.sizes(), at::kDouble)[0]);
    }
    const auto moved = [&](double h) {
      const std::vector<at::Tensor> weights = b.policy.trainable.tensors();
      {
        const at::NoGradGuard no_grad;
        for (std::size_t i = 0; i < weights.size(); ++i) {
          at::Tensor(weights[i]).add_(direction[i], h);
        }
      }
      const double value = b.loss(method).item<double>();
      const at::NoGradGuard no_grad;
      for (std::size_t i = 0; i < weights.size(); ++i) at::Tensor(weights[i]).sub_(direction[i], h);
      return value;
    };
    EXPECT_NEAR((moved(1e-5) - moved(-1e-5)) / 2e-5 / dot_product(g, direction), 1, 1e-6) << name;
  }
}

namespace {

DirectGradientConfig config_with(const std::function<void(DirectGradientConfig&)>& change) {
  DirectGradientConfig c;
  change(c);
  return c;
}

}  // namespace

TEST(finetune_direct_gradient, WindowsStopsAndHinges) {
  const MethodBench b(at::kDouble);
  // All steps one by one: draft with last = K is full backpropagation, and a smaller window is
  // another gradient.
  DirectGradient all("draft", config_with([](DirectGradientConfig& c) { c.last = 6; }));
  DirectGradient zero("draft", config_with([](DirectGradientConfig& c) { c.last = 0; }));
  DirectGradient one("draft", config_with([](DirectGradientConfig& c) { c.last = 1; }));
  const std::vector<at::Tensor> full = b.gradient(all);
  EXPECT_NEAR(dot_product(full, b.gradient(zero)) / dot_product(full, full), 1, 1e-12);
  EXPECT_GT(std::abs(dot_product(full, b.gradient(one)) / dot_product(full, full) - 1), 0.05);
  EXPECT_EQ(all.training_calls(b.table), 6);
  DirectGradient hinged("draft", config_with([](DirectGradientConfig& c) {
                          c.hinged = true;
                          c.hinge = -1e6;
                        }));
  EXPECT_EQ(b.loss(hinged).item<double>(), 0);
  for (const char* name : {"draft-lv", "refl", "drtune", "leap-align"}) {
    DirectGradient method(name, {});
    const std::vector<at::Tensor> g = b.gradient(method);
    EXPECT_GT(dot_product(g, g), 0) << name;
    EXPECT_GT(dot_product(g, full), 0) << name << ": downhill for the whole path, too";
  }
  test::expect_error(ErrorKind::kConfig, "buffer_passes",
                     [&] { all.collect(b.context(), 0, 0, 4, true); });
}

// Jumps: the value is that of the path, and without the nested part the first jump moves the end
// point by its own length only.
TEST(finetune_direct_gradient, JumpsFollowThePath) {
  const MethodBench b(at::kDouble);
  DirectGradient leap("leap-align", config_with([](DirectGradientConfig& c) {
                        c.nested = 0;
                        c.tau = 1e6;
                      }));
  leap.begin_step(b.context(), 4, 0);
  const Batch path = leap.collect(b.context(), 4, 0, 8, false);
  EXPECT_NEAR(b.loss(leap).item<double>(),
              -b.problem.reward->score(path.states[2], {}).mean().item<double>() / 2e6, 1e-12);
  const std::vector<std::int64_t> two = kMethodStreams.choose(Purpose::kSubset, 4, 0, 6, 2);
  const at::AutoGradMode grad(true);
  at::Tensor plain = at::zeros({}, at::kDouble);
  const at::Tensor slope = b.problem.reward->score_and_gradient(path.states[2], {}).gradient;
  for (int i = 0; i < 2; ++i) {
    const double t = b.table.steps[static_cast<std::size_t>(two[static_cast<std::size_t>(i)])].t;
    const double next = i == 0 ? b.table.steps[static_cast<std::size_t>(two[1])].t : 1.0;
    plain = plain - ((next - t) *
                     b.policy.tuned->velocity(path.states[static_cast<std::size_t>(i)],
                                              time_tensor(t, path.states[0]), {}) *
                     slope)
                            .sum() /
                        8 / 2e6;
  }
  const std::vector<at::Tensor> expected =
      torch::autograd::grad({plain}, b.policy.trainable.tensors());
  const std::vector<at::Tensor> leaped = b.gradient(leap);
  EXPECT_NEAR(dot_product(leaped, expected) / dot_product(expected, expected), 1, 1e-9);
  DirectGradient nested("leap-align", config_with([](DirectGradientConfig& c) {
                          c.nested = 1;
                          c.tau = 1e6;
                        }));
  EXPECT_GT(
      std::abs(dot_product(b.gradient(nested), expected) / dot_product(expected, expected) - 1),
      1e-4);
}

TEST(finetune_direct_gradient, AlignPropDrawsItsWindow) {
  LeafBench b;
  EXPECT_EQ(DirectGradient("alignprop", {}).training_calls(b.table), 3);
  DirectGradient method("alignprop", {});
  std::set<std::size_t> windows;
  for (std::int64_t step = 0; step < 40; ++step) {
    method.begin_step(b.context(), step, 0);
    windows.insert(method.collect(b.context(), 0, 0, 2, false).noises.size());
  }
  EXPECT_EQ(windows, (std::set<std::size_t>{1, 2, 3, 4, 5}));
}

}  // namespace tiltflow
