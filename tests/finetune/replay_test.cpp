#include "tiltflow/finetune/replay.h"
#include "tests/finetune/control_bench.h"
#include "tests/finetune/method_bench.h"
#include "tests/support.h"
#include "tiltflow/models/mixture/mixture_model.h"
#include "tiltflow/sampler/fields.h"
#include "tiltflow/verify/control_problems.h"

namespace tiltflow {

// What every step holds is the newest rollouts; the older ones make room.
TEST(finetune_replay, TheNewestRolloutsAreKept) {
  LeafBench b;
  ReplayBuffer buffer({.refresh = 1, .replay = 2});
  for (std::int64_t step = 0; step < 5; ++step) {
    ReplayBuffer::Columns newest;
    buffer.draw(
        b.context(), step, 0, 3, [&] { return ReplayBuffer::Columns{at::full({3}, step)}; },
        &newest);
    EXPECT_EQ(newest.at(0)[0].item<std::int64_t>(), step);
  }
  EXPECT_TRUE(at::equal(buffer.state().at("0.0"), at::tensor({3, 3, 3, 4, 4, 4}, at::kLong)));
}

}  // namespace tiltflow
