#include "tiltflow/train/trainer.h"
#include "tests/support.h"
#include "tests/train/scripted_training.h"
#include "tests/train/small_run.h"

namespace tiltflow {
namespace {

using test::metrics_at;
using test::ScriptedObjective;
using test::short_training;

std::vector<std::string> checkpoints_of(const std::filesystem::path& run) {
  std::vector<std::string> out;
  for (const auto& entry : std::filesystem::directory_iterator(run / "checkpoints")) {
    out.push_back(entry.path().filename());
  }
  std::sort(out.begin(), out.end());
  return out;
}

}  // namespace

TEST(train_trainer, EndsWithThisStateAndThoseBefore) {
  const test::TempDir dir;
  TrainConfig config = short_training();
  config.stop_when = {"loss > 5 for 3"};
  ScriptedObjective objective([](std::int64_t step) { return step < 20 ? 1.0 : 8.0; });
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
TEST(train_trainer, WaitsForACheckpoint) {
  const test::TempDir dir;
  TrainConfig config = short_training();
  config.stop_when = {"loss > 5"};
  ScriptedObjective objective([](std::int64_t step) { return step == 21 ? 8.0 : 1.0; }, 4);
  tiltflow::Run run(dir / "run", "x", false);
  test::expect_error(ErrorKind::kDiverged, "after step 24",
                     [&] { train(config, objective, run, {}); });
}

TEST(train_trainer, FiguresOfEvaluationsCount) {
  const test::TempDir dir;
  TrainConfig config = short_training();
  config.stop_when = {"eval_reward < 0"};
  ScriptedObjective objective([](std::int64_t) { return 1.0; });
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

TEST(train_trainer, MetricsThatAreNeverLoggedAreNamedInShortRunsToo) {
  for (const std::int64_t steps : {4, 15}) {
    const test::TempDir dir;
    TrainConfig config = short_training();
    config.steps = steps;
    config.stop_when = {"lss > 5"};
    ScriptedObjective objective([](std::int64_t) { return 1.0; });
    tiltflow::Run run(dir / "run", "x", false);
    testing::internal::CaptureStderr();
    train(config, objective, run, {});
    const std::string said = testing::internal::GetCapturedStderr();
    EXPECT_NE(said.find("this run logs no 'lss'"), std::string::npos) << steps << ": " << said;
  }
}

TEST(train_trainer, UnknownWordsAreRefusedWithTheirKey) {
  const test::TempDir dir;
  write_file_atomic(dir / "a.toml", "[train]\nstop_when = [\"loss >> 3\"]\n");
  test::expect_error(ErrorKind::kConfig, "train.stop_when",
                     [&] { load_config<FinetuneConfig>(dir / "a.toml", {}); });
}

}  // namespace tiltflow
