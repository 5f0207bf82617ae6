#include <cmath>

#include "tests/support.h"
#include "tests/train/scripted_training.h"
#include "tests/train/small_run.h"
#include "tiltflow/train/reward_terms.h"
#include "tiltflow/train/trainer.h"

namespace tiltflow {
namespace {

using test::metrics_at;

}  // namespace

TEST(train_reward_terms, UnscaledBesideScaled) {
  const test::TempDir dir;
  FinetuneConfig config = test::small_run(dir);
  config.evaluation.every = 2;
  config.train.steps = 2;
  RewardTerm ink;
  ink.scale = 3;
  config.reward = {config.reward[0], ink, ink};
  const FinetuneSetup setup = set_up(config);
  tiltflow::Run run(dir / "run", "x", false);
  finetune(setup, run);
  for (const auto& [step, prefix] :
       std::vector<std::pair<std::int64_t, std::string>>{{0, "base_"}, {1, ""}, {2, "eval_"}}) {
    const auto m = metrics_at(dir / "run", step, prefix + "reward");
    const double judge = m.at(prefix + "reward_unscaled_class-log-prob");
    const double first = m.at(prefix + "reward_unscaled_ink");
    const double second = m.at(prefix + "reward_unscaled_ink_2");
    EXPECT_EQ(first, second);
    EXPECT_NEAR(m.at(prefix + "reward"), 5 * judge + 3 * first + 3 * second,
                1e-5 * (1 + std::abs(m.at(prefix + "reward"))))
        << prefix;
    if (!prefix.empty()) {
      EXPECT_GT(m.at(prefix + "reward_unscaled_ink_se"), 0);
    }
  }
}

// Methods that reuse a batch, score inside the loss, or add something to their rewards log the
// terms too.
TEST(train_reward_terms, EveryKindOfMethodLogsThem) {
  const test::TempDir dir;
  FinetuneConfig config = test::small_run(dir);
  config.evaluation.every = 0;
  config.train.steps = 2;
  RewardTerm ink;
  ink.scale = 4;
  config.reward = {ink};
  for (const std::string& name :
       std::vector<std::string>{"adjoint-matching", "draft", "flow-grpo"}) {
    config.method.name = name;
    config.buffer_passes = name == "adjoint-matching" ? 2 : 1;
    config.batch = config.micro_batch = 8;  // one group
    const FinetuneSetup setup = set_up(config);
    tiltflow::Run run(dir / name, "x", false);
    finetune(setup, run);
    for (const std::int64_t step : {1, 2}) {
      const auto m = metrics_at(dir / name, step, "reward");
      EXPECT_NEAR(m.at("reward_unscaled") * 4, m.at("reward"), 1e-5) << name << " " << step;
    }
  }
  EXPECT_EQ(unscaled_text({{"reward_unscaled", 0.25}}, {""}), " (unscaled 0.25)");
  EXPECT_EQ(unscaled_text({{"base_reward_unscaled_ink", 0.25}, {"base_reward_unscaled_step", 1}},
                          {"_ink", "_step"}, "base_"),
            " (unscaled: ink 0.25, step 1)");
  EXPECT_EQ(unscaled_text({}, {""}), "");
}

}  // namespace tiltflow
