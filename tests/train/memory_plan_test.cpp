#include <malloc.h>

#include "tests/support.h"
#include "tests/train/ink_run.h"
#include "tiltflow/models/model_file.h"
#include "tiltflow/train/finetuning.h"
#include "tiltflow/train/memory_plan.h"
#include "tiltflow/train/pretraining.h"
#include "tiltflow/train/pretraining_run.h"

namespace tiltflow {
namespace {

using test::ink_run;

}  // namespace

TEST(train_memory_plan, PiecesShrinkAndActivationsAreRecomputedBeforeItFails) {
  const auto model = create_velocity_model({"sit",
                                            {{"input_size", "16"},
                                             {"in_channels", "4"},
                                             {"hidden_size", "64"},
                                             {"depth", "6"},
                                             {"num_heads", "4"},
                                             {"num_classes", "3"},
                                             {"patch_size", "2"}}},
                                           0);
  const MemoryNeed need = memory_need(*model, 1e5, 20);
  EXPECT_GT(need.activations, 3 * need.checkpointed);
  const MemoryPlan roomy = plan_memory(need, 12, 4, 2, 64e9);
  EXPECT_EQ(roomy.micro_batch, 6) << "every worker has a piece";
  EXPECT_FALSE(roomy.checkpointing);
  const double base = roomy.bytes - need.activations * 4 * 2 * 6;
  const MemoryPlan tight = plan_memory(need, 12, 4, 2, base + need.activations * 4 * 2 * 2.5);
  EXPECT_TRUE(tight.checkpointing);
  EXPECT_GE(tight.micro_batch, 4);
  EXPECT_LE(tight.bytes, tight.limit);
  test::expect_error(ErrorKind::kConfig, "one trajectory needs about",
                     [&] { plan_memory(need, 12, 4, 2, base); });
}

// micro-batch = 0: the set-up carries what was planned.
TEST(train_memory_plan, ItemZeroFollowsThePlan) {
  const test::TempDir dir;
  FinetuneConfig config = ink_run(dir);
  config.micro_batch = 0;
  const FinetuneSetup planned = set_up(config);
  EXPECT_GE(planned.config.micro_batch, 1);
  EXPECT_LE(planned.config.micro_batch, config.batch);
}

}  // namespace tiltflow
