#include "tiltflow/nn/embedding.h"

#include <cmath>

#include "tests/support.h"

namespace tiltflow {

// The official network's own table: 8 x 8 pixels in patches of 2.
TEST(nn_embedding, PositionsAreTheOfficialOnes) {
  const at::Tensor official =
      read_safetensors(test::golden("sit_a_ema.safetensors")).tensors.at("pos_embed");
  const auto side = std::llround(std::sqrt(static_cast<double>(official.size(1))));
  EXPECT_LT((sincos_positions(side, official.size(2)) - official).abs().max().item<double>(), 1e-6);
}

}  // namespace tiltflow
