// What a run says on the way, and when it ends itself.
#include "tiltflow/train/watch.h"
#include "tests/support.h"
#include "tests/train/scripted_training.h"
#include "tests/train/small_run.h"
#include "tiltflow/train/monitoring.h"
#include "tiltflow/train/trainer.h"

namespace tiltflow {
namespace {

using test::ScriptedObjective;
using test::short_training;

}  // namespace

TEST(train_watch, SaysEachKindOnceAlsoAcrossResumes) {
  const test::TempDir dir;
  const auto rising = [](std::int64_t step) { return 1 + 0.1 * static_cast<double>(step); };
  TrainConfig config = short_training();
  config.steps = 80;
  {
    ScriptedObjective objective(rising);
    tiltflow::Run run(dir / "run", "x", false);
    TrainHooks hooks;
    hooks.after_step = [](std::int64_t step, const ParameterSet&) {
      if (step == 72) fail(ErrorKind::kFailure, "killed");
    };
    EXPECT_THROW(train(config, objective, run, hooks), Error);
  }
  const auto first = stored_warnings(dir / "run");
  ASSERT_EQ(first.size(), 1u);
  EXPECT_EQ(first[0].warning.kind, "loss");
  EXPECT_EQ(first[0].step, 60) << "three windows of twenty steps";
  EXPECT_NE(first[0].warning.change.find("train.learning_rate"), std::string::npos);
  ScriptedObjective objective(rising);
  tiltflow::Run run(dir / "run", "x", true);
  train(config, objective, run, {});
  EXPECT_EQ(stored_warnings(dir / "run").size(), 1u);
}

// Rewards of training are compared with base samples only where they are those of the policy's own
// samples.
TEST(train_watch, ComparesWithTheBaseWhereBatchesAreThePolicys) {
  const test::TempDir dir;
  FinetuneConfig config = test::small_run(dir);
  FinetuneSetup setup = set_up(config);
  const auto compares = [&](const std::string& method, const std::string& rollouts,
                            std::int64_t candidates) {
    setup.config.method.name = method;
    setup.config.method.endpoint.rollouts = rollouts;
    setup.config.method.endpoint.screening.candidates = candidates;
    return facts_of(setup, BaseStatistics{1, 0.1}).base.has_value();
  };
  EXPECT_TRUE(compares("adjoint-matching", "policy", 0));
  EXPECT_TRUE(compares("rwr", "policy", 0));
  EXPECT_FALSE(compares("rwr", "base", 0));
  EXPECT_FALSE(compares("diffusion-nft", "policy", 32)) << "the best and the worst of each group";
  EXPECT_TRUE(compares("rwr", "policy", 0));
  setup.config.guidance.mode = "sampling";
  EXPECT_FALSE(compares("rwr", "policy", 0));
}

TEST(train_watch, LossesAgainstTheMovingPolicyAreNotExpectedToFall) {
  const test::TempDir dir;
  FinetuneSetup setup = set_up(test::small_run(dir));
  const auto falls = [&](const std::string& method, const std::string& rollouts) {
    setup.config.method.name = method;
    setup.config.method.endpoint.rollouts = rollouts;
    return facts_of(setup, BaseStatistics{}).loss_falls;
  };
  EXPECT_TRUE(falls("adjoint-matching", "policy"));
  EXPECT_TRUE(falls("efficient-adjoint-matching", "policy"));
  EXPECT_TRUE(falls("rwr", "base"));
  EXPECT_FALSE(falls("rwr", "policy"));
  EXPECT_FALSE(falls("diffusion-nft", "policy"));
  EXPECT_FALSE(falls("flow-grpo", "policy"));
}

}  // namespace tiltflow
