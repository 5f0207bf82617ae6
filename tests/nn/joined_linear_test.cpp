#include "tiltflow/nn/joined_linear.h"

#include "tests/support.h"
#include "tiltflow/tensor/random.h"

namespace tiltflow {
namespace {

at::Tensor normal_values(std::uint32_t key, at::IntArrayRef shape) {
  return RandomStreams(5).normal(Purpose::kProbe, key, 0, 0, 1, shape)[0];
}

}  // namespace

// Layers of several sizes as one product: what each gives in bf16, gradients in x and in the
// layers' own weights, which may change in between.
TEST(nn_joined_linear, EqualsTheLayersOneByOne) {
  std::vector<Linear> layers;
  std::vector<at::Tensor> wanted;
  for (const std::int64_t size : {6, 10, 4}) {
    Linear layer;
    layer.weight =
        normal_values(static_cast<std::uint32_t>(size), {size, 8}).set_requires_grad(true);
    layer.bias =
        normal_values(static_cast<std::uint32_t>(100 + size), {size}).set_requires_grad(true);
    wanted.insert(wanted.end(), {layer.weight, layer.bias});
    layers.push_back(layer);
  }
  const JoinedLinear joined(layers);
  const at::Tensor x = normal_values(1, {5, 8}).to(at::kBFloat16).set_requires_grad(true);
  const at::Tensor cotangent = normal_values(2, {5, 20});
  wanted.push_back(x);
  at::Tensor before;
  for (int round = 0; round < 2; ++round) {
    const at::AutoGradMode grad(true);
    std::vector<at::Tensor> parts;
    for (const Linear& layer : layers) {
      parts.push_back(at::linear(x.to(at::kFloat), layer.weight, layer.bias));
    }
    const at::Tensor expected = at::cat(parts, 1);
    const at::Tensor found = joined(x);
    EXPECT_EQ(found.scalar_type(), at::kFloat);
    EXPECT_LT(test::relative_error(found.detach(), expected.detach()), 1e-2);
    const auto g = torch::autograd::grad({expected}, wanted, {cotangent});
    const auto h = torch::autograd::grad({found}, wanted, {cotangent});
    for (std::size_t i = 0; i < wanted.size(); ++i) {
      EXPECT_LT(test::relative_error(h[i].detach(), g[i].detach()), 1e-2) << i;
    }
    if (round == 1) {
      EXPECT_GT(test::relative_error(found.detach(), before), 0.1) << "the change must matter";
    }
    before = found.detach();
    const at::NoGradGuard no_grad;
    layers[1].weight.add_(normal_values(7, {10, 8}));
    layers[2].bias.add_(1);
  }
}

TEST(nn_joined_linear, TakesLayersOfOneInputWithoutAdapters) {
  const auto layer = [](std::int64_t in, bool bias) {
    Linear out;
    out.weight = normal_values(1, {4, in});
    if (bias) out.bias = normal_values(2, {4});
    return out;
  };
  EXPECT_TRUE(JoinedLinear::takes({layer(8, true), layer(8, true)}));
  EXPECT_FALSE(JoinedLinear::takes({}));
  EXPECT_FALSE(JoinedLinear::takes({layer(8, true), layer(6, true)}));
  EXPECT_FALSE(JoinedLinear::takes({layer(8, true), layer(8, false)}));
  Linear adapted = layer(8, true);
  adapted.adapter.a = normal_values(3, {2, 8});
  adapted.adapter.b = normal_values(4, {4, 2});
  EXPECT_FALSE(JoinedLinear::takes({adapted}));
}

}  // namespace tiltflow
