// What a run says on the way, and when it ends itself.
#include <cmath>

#include "tests/support.h"
#include "tests/train/small_run.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/json_lines.h"
#include "tiltflow/train/monitoring.h"
#include "tiltflow/train/reward_terms.h"
#include "tiltflow/train/trainer.h"
#include "tiltflow/train/watch.h"

namespace tiltflow {
namespace {

// One weight whose loss is what the test says, with a gradient of one.
class Scripted final : public Objective {
 public:
  explicit Scripted(std::function<double(std::int64_t)> loss, std::int64_t between = 1)
      : loss_(std::move(loss)), between_(between) {
    trainable_.add("w", at::ones({1}).set_requires_grad(true));
  }
  const ParameterSet& trainable() const override { return trainable_; }
  std::int64_t begin_step(std::int64_t step) override { return step_ = step, 1; }
  LossReport item(std::int64_t) override {
    const at::Tensor w = trainable_.at("w");
    return {(w - w.detach()).sum() + loss_(step_ + 1), {}};
  }
  bool at_checkpoint() const override { return (step_ + 1) % between_ == 0; }

 private:
  std::function<double(std::int64_t)> loss_;
  std::int64_t between_;
  std::int64_t step_ = 0;
  ParameterSet trainable_;
};

std::vector<std::string> checkpoints_of(const std::filesystem::path& run) {
  std::vector<std::string> out;
  for (const auto& entry : std::filesystem::directory_iterator(run / "checkpoints")) {
    out.push_back(entry.path().filename());
  }
  std::sort(out.begin(), out.end());
  return out;
}

TrainConfig short_training() {
  TrainConfig config;
  config.steps = 40;
  config.checkpoint_every = 5;
  config.keep_checkpoints = 2;
  config.optimizer.gradient_clip = 0;
  return config;
}

std::map<std::string, double> metrics_at(const std::filesystem::path& run, std::int64_t step,
                                         const std::string& having) {
  for (const auto& line : read_json_lines(run / "metrics.jsonl")) {
    if (line.at("step") != step || !line.contains(having)) continue;
    std::map<std::string, double> out;
    for (const auto& [key, value] : line.items()) out[key] = number_from_json(value);
    return out;
  }
  ADD_FAILURE() << "no " << having << " at step " << step;
  return {};
}

}  // namespace

TEST(train_stop_when, EndsWithThisStateAndThoseBefore) {
  const test::TempDir dir;
  TrainConfig config = short_training();
  config.stop_when = {"loss > 5 for 3"};
  Scripted objective([](std::int64_t step) { return step < 20 ? 1.0 : 8.0; });
  tiltflow::Run run(dir / "run", "x", false);
  try {
    train(config, objective, run, {});
    ADD_FAILURE() << "not stopped";
  } catch (const Error& error) {
    EXPECT_EQ(exit_code(error.kind()), 6);
    EXPECT_NE(std::string(error.what())
                  .find("after step 22: \"loss > 5 for 3\" (loss = 8 > 5, 3 times in a row)"),
              std::string::npos)
        << error.what();
  }
  EXPECT_EQ(checkpoints_of(dir / "run"),
            (std::vector<std::string>{"step-000015", "step-000020", "step-000022"}));
}

// Between checkpoints a batch in use is not held by any: the stop waits for the next.
TEST(train_stop_when, WaitsForACheckpoint) {
  const test::TempDir dir;
  TrainConfig config = short_training();
  config.stop_when = {"loss > 5"};
  Scripted objective([](std::int64_t step) { return step == 21 ? 8.0 : 1.0; }, 4);
  tiltflow::Run run(dir / "run", "x", false);
  test::expect_error(ErrorKind::kDiverged, "after step 24",
                     [&] { train(config, objective, run, {}); });
}

TEST(train_stop_when, FiguresOfEvaluationsCount) {
  const test::TempDir dir;
  TrainConfig config = short_training();
  config.stop_when = {"eval_reward < 0"};
  Scripted objective([](std::int64_t) { return 1.0; });
  tiltflow::Run run(dir / "run", "x", false);
  TrainHooks hooks;
  hooks.evaluate = [](std::int64_t step, const ParameterSet&) {
    return step % 10
               ? std::map<std::string, double>{}
               : std::map<std::string, double>{{"eval_reward", 15.0 - static_cast<double>(step)}};
  };
  test::expect_error(ErrorKind::kDiverged, "after step 20",
                     [&] { train(config, objective, run, hooks); });
  EXPECT_EQ(metrics_at(dir / "run", 10, "eval_reward").at("eval_reward"), 5);
}

TEST(train_stop_when, MetricsThatAreNeverLoggedAreNamedInShortRunsToo) {
  for (const std::int64_t steps : {4, 15}) {
    const test::TempDir dir;
    TrainConfig config = short_training();
    config.steps = steps;
    config.stop_when = {"lss > 5"};
    Scripted objective([](std::int64_t) { return 1.0; });
    tiltflow::Run run(dir / "run", "x", false);
    testing::internal::CaptureStderr();
    train(config, objective, run, {});
    const std::string said = testing::internal::GetCapturedStderr();
    EXPECT_NE(said.find("this run logs no 'lss'"), std::string::npos) << steps << ": " << said;
  }
}

TEST(train_stop_when, UnknownWordsAreRefusedWithTheirKey) {
  const test::TempDir dir;
  write_file_atomic(dir / "a.toml", "[train]\nstop_when = [\"loss >> 3\"]\n");
  test::expect_error(ErrorKind::kConfig, "train.stop_when",
                     [&] { load_config<FinetuneConfig>(dir / "a.toml", {}); });
}

TEST(train_watch, SaysEachKindOnceAlsoAcrossResumes) {
  const test::TempDir dir;
  const auto rising = [](std::int64_t step) { return 1 + 0.1 * static_cast<double>(step); };
  TrainConfig config = short_training();
  config.steps = 80;
  {
    Scripted objective(rising);
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
  Scripted objective(rising);
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
    config.batch = config.item = 8;  // one group
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
