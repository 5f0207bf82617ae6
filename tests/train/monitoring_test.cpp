#include "tiltflow/train/monitoring.h"
#include "tests/support.h"
#include "tests/train/small_run.h"
#include "tiltflow/eval/generate.h"
#include "tiltflow/io/image.h"
#include "tiltflow/io/json_lines.h"

namespace tiltflow {

// The pictures of a run show predictions, its logged rewards are of the samples.
TEST(train_monitoring, RunsShowPredictionsAndLogSamples) {
  const test::TempDir dir;
  FinetuneConfig config = test::small_run(dir);
  config.train.steps = 1;
  const FinetuneSetup setup = set_up(config);
  tiltflow::Run run(dir / "run", "x", false);
  finetune(setup, run);
  DrawOptions options;
  options.n = config.evaluation.samples;
  options.step = RunKey::kEvaluation;
  options.keep_prediction = true;
  const Draws draws =
      draw(*setup.flow.model, config.sampler, *setup.flow.path, setup.flow.model->sample_shape(),
           setup.streams, setup.labels_at(options.step), options);
  const auto shown = [&](const at::Tensor& states) {
    return enlarge(image_grid(setup.reward->decode(states).clamp(0, 1), 8), 2);
  };
  const at::Tensor file = read_image(run.samples() / "samples-step-000000.png");
  EXPECT_LT((file - shown(draws.prediction).expand_as(file)).abs().max().item<double>(),
            1.01 / 255);
  EXPECT_GT((file - shown(draws.x).expand_as(file)).abs().max().item<double>(), 0.1)
      << "the samples themselves look otherwise";
  std::vector<double> logged;
  for (const auto& line : read_json_lines(dir / "run/metrics.jsonl")) {
    if (!line.contains("eval_reward") || line["step"] != 0) continue;
    logged.push_back(number_from_json(line["eval_reward"]));
  }
  ASSERT_EQ(logged.size(), 1u);
  EXPECT_NEAR(logged[0], setup.reward->score(draws.x, draws.labels).mean().item<double>(), 1e-5);
}

}  // namespace tiltflow
