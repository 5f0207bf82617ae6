#include "tiltflow/tensor/loss_report.h"
#include "tests/support.h"

namespace tiltflow {

TEST(tensor_loss_report, TravelAsTextExactly) {
  MetricSums sums;
  sums.add("loss", 0.1 + 0.2, 3);
  sums.add("a name with spaces", -1e-300, 1e17);
  const MetricSums back = MetricSums::from_text(sums.text());
  EXPECT_EQ(back.averages(), sums.averages());
  EXPECT_EQ(back.weight_of("a name with spaces"), 1e17);
  EXPECT_EQ(sums.take("loss"), 0.1 + 0.2);
  EXPECT_EQ(sums.weight_of("loss"), 0);
}

}  // namespace tiltflow
