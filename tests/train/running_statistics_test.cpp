#include "tiltflow/train/running_statistics.h"
#include "tests/support.h"

namespace tiltflow {

// Pieces of one batch: the mean of what they propose, whole numbers rounded down; a piece may have
// nothing to say.
TEST(train_running_statistics, PiecesAreAveraged) {
  ParameterSet buffers;
  buffers.add("mean", at::zeros({1}));
  buffers.add("count", at::zeros({1}, at::kLong));
  RunningStatistics statistics(buffers);
  statistics.begin(3);
  for (const std::int64_t piece : {0, 2}) {
    ParameterSet proposal;
    proposal.add("mean", at::full({1}, 1.0F + static_cast<float>(piece)));
    proposal.add("count", at::full({1}, 7));
    statistics.propose(piece, proposal);
  }
  statistics.take();
  EXPECT_EQ(buffers.at("mean").item<float>(), 2);
  EXPECT_EQ(buffers.at("count").item<std::int64_t>(), 7);
}

}  // namespace tiltflow
