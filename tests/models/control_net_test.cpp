#include "tiltflow/models/control/control_net.h"
#include "tests/support.h"
#include "tiltflow/policy/policy.h"

namespace tiltflow {

// The control of kind potential is the gradient of its scalar, and its own gradient in the weights
// is right (second order).
TEST(models_control_net, PotentialIsAGradientAndDifferentiable) {
  const ControlConfig config{"potential", 8, 2};
  ParameterSet weights;
  std::uint32_t key = 0;
  for (const auto& [name, tensor] : init_control(config, {3}, 2, RandomStreams(1))) {
    weights.add(name, (tensor.to(at::kDouble) +
                       0.3 * RandomStreams(2).normal(Purpose::kProbe, ++key, 0, 0, 1,
                                                     tensor.sizes(), at::kDouble)[0])
                          .set_requires_grad(true));
  }
  const at::Tensor x = RandomStreams(3).normal(Purpose::kProbe, 0, 0, 0, 4, {3}, at::kDouble);
  const at::Tensor t = at::linspace(0.1, 0.9, 4, at::kDouble);
  const Condition c{at::tensor({0, 1, 2, 2}, at::kLong)};
  const auto output = [&](const at::Tensor& at_x) {
    const at::NoGradGuard no_grad;
    return control_output(config, weights, at_x, t, c);
  };
  const auto potential = [&](const at::Tensor& at_x) {
    const at::NoGradGuard no_grad;
    return control_potential(config, weights, at_x, t, c);
  };
  const double h = 1e-5;
  for (std::int64_t i = 0; i < 3; ++i) {
    const at::Tensor step = at::zeros({1, 3}, at::kDouble);
    step[0][i] = h;
    EXPECT_TRUE(at::allclose(output(x).select(1, i),
                             (potential(x + step) - potential(x - step)) / (2 * h), 1e-6, 1e-8))
        << i;
  }
  const at::AutoGradMode grad(true);
  const at::Tensor probe = RandomStreams(4).normal(Purpose::kProbe, 0, 0, 0, 4, {3}, at::kDouble);
  const at::Tensor& w = weights.at("layers.0.weight");
  const at::Tensor g =
      torch::autograd::grad({(control_output(config, weights, x, t, c) * probe).sum()}, {w})[0];
  const auto moved = [&](double by) {
    const at::NoGradGuard no_grad;
    at::Tensor(w)[1][2] += by;
    const double value = (output(x) * probe).sum().item<double>();
    at::Tensor(w)[1][2] -= by;
    return value;
  };
  EXPECT_NEAR(g[1][2].item<double>(), (moved(h) - moved(-h)) / (2 * h), 1e-6);
}

}  // namespace tiltflow
