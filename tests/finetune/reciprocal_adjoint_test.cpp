#include "tiltflow/finetune/reciprocal_adjoint.h"
#include "tests/finetune/control_bench.h"
#include "tests/support.h"
#include "tiltflow/models/mixture/mixture_model.h"
#include "tiltflow/sampler/fields.h"

namespace tiltflow {
namespace {

using test::LeafBench;

}  // namespace

TEST(finetune_reciprocal_adjoint, BufferServesManyStepsAndOtherBasesAreRefused) {
  LeafBench b;
  ReciprocalConfig c;
  c.replay.refresh = 3;
  c.replay.replay = 2;
  ReciprocalAdjointMatching method(c);
  test::expect_error(ErrorKind::kConfig, "standard normal base",
                     [&] { method.begin_step(b.context(), 0, 0); });
  b.policy.base =
      std::make_shared<MixtureModel>(mixture_from_args({{"means", "0 0"}}), make_path("linear"));
  const auto counted = std::make_shared<CountingField>(b.leaf);
  b.policy.tuned = counted;
  std::vector<std::int64_t> calls;
  for (std::int64_t step = 0; step < 7; ++step) {
    counted->reset();
    method.begin_step(b.context(), step, 0);
    const Batch batch = method.collect(b.context(), step, 0, 8, false);
    EXPECT_EQ(batch.states.size(), 4U);
    calls.push_back(counted->count());
  }
  EXPECT_EQ(calls, (std::vector<std::int64_t>{40, 0, 0, 40, 0, 0, 40}));
  EXPECT_EQ(method.state().at("0.0").size(0), 16);  // two rollouts are kept
  c.gradient_cap = 1e-3;
  ReciprocalAdjointMatching capped(c);
  capped.begin_step(b.context(), 0, 0);
  capped.collect(b.context(), 0, 0, 8, false);
  EXPECT_LE(capped.state().at("0.1").norm(2, 1).max().item<double>(), 1e-3 * (1 + 1e-9));
}

}  // namespace tiltflow
