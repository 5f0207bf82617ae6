#include "tiltflow/models/mlp/mlp.h"
#include "tests/support.h"

namespace tiltflow {

TEST(models_mlp, LearnsNothingBeforeTraining) {
  const MlpConfig config{3, 16, 2, 4};
  const auto model = make_mlp(config, init_mlp(config, RandomStreams(0)));
  EXPECT_EQ(model->velocity(at::randn({4, 3}), at::rand({4}), {}).abs().max().item<float>(), 0);
}

}  // namespace tiltflow
