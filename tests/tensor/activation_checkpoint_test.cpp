#include "tiltflow/tensor/activation_checkpoint.h"
#include "tests/support.h"

namespace tiltflow {

TEST(tensor_activation_checkpoint, GradientsEqualThePlainOnes) {
  const at::Tensor x = at::randn({4, 5}, at::kDouble).set_requires_grad(true);
  const at::Tensor w = at::randn({5, 5}, at::kDouble).set_requires_grad(true);
  const at::Tensor constant = at::randn({5}, at::kDouble);
  int calls = 0;
  const TensorFunction f = [&](const std::vector<at::Tensor>& in) {
    ++calls;
    return at::tanh(at::matmul(in[0], in[1]) + in[2]).square();
  };
  const auto plain = torch::autograd::grad({f({x, w, constant}).sum()}, {x, w});
  calls = 0;
  const auto saved = torch::autograd::grad({checkpoint(f, {x, w, constant}).sum()}, {x, w});
  EXPECT_EQ(calls, 2);
  EXPECT_TRUE(at::equal(plain[0], saved[0]));
  EXPECT_TRUE(at::equal(plain[1], saved[1]));
}

}  // namespace tiltflow
