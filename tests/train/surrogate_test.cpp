#include <cmath>

#include "tests/support.h"
#include "tests/train/step_task.h"
#include "tiltflow/train/finetuning.h"
#include "tiltflow/train/surrogate.h"

namespace tiltflow {
namespace {

using test::step_task;

double share_above(const FinetuneSetup& setup, const VelocityField& field) {
  const RandomStreams streams(77);
  DrawOptions options;
  options.n = 4000;
  return (draw(field, setup.config.sampler, *setup.flow.path, {2}, streams, no_labels(), options)
              .x.select(1, 0) > 0.5)
      .to(at::kDouble)
      .mean()
      .item<double>();
}

}  // namespace

// Adjoint Matching needs a gradient; a step has none. With the learned stand-in it comes most of
// the way to the tilted law of the step; without, it is refused.
TEST(train_surrogate, MakesAStepLearnable) {
  const test::TempDir dir;
  FinetuneConfig config = step_task();
  const FinetuneSetup setup = set_up(config);
  {
    tiltflow::Run run(dir / "run", "x", false);
    finetune(setup, run);
  }
  FlowModelConfig file;
  file.file = (dir / "run/model.safetensors").string();
  const double base = share_above(setup, *setup.flow.model);
  const double tuned = share_above(setup, *load_flow_model(file).model);
  const double wanted = base * std::exp(1.5) / (base * std::exp(1.5) + 1 - base);
  EXPECT_GT(wanted - base, 0.25);
  EXPECT_GT(tuned, base + 0.7 * (wanted - base)) << "base " << base << " wanted " << wanted;
  EXPECT_LT(tuned, wanted + 0.03);
  config.method.adjoint = adjoint_matching_preset("deterministic-control", 20);
  test::expect_error(ErrorKind::kConfig, "fitted to samples with noise", [&] { set_up(config); });
  config.method.adjoint = adjoint_matching_preset("exact", 20);
  config.surrogate.every = 0;
  test::expect_error(ErrorKind::kConfig, "needs the reward's gradient", [&] { set_up(config); });
}

}  // namespace tiltflow
