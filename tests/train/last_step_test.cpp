#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>

#include "tests/support.h"
#include "tiltflow/base/signals.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/tensor/parallel.h"
#include "tiltflow/train/last_step.h"
#include "tiltflow/train/trainer.h"

namespace tiltflow {
namespace {

enum class Moment { kNever, kBegin, kItem, kBetweenItems, kFollowing, kHang };

struct StopAt {
  Moment moment = Moment::kNever;
  std::int64_t step = 0;
};

// Weights that are pulled to keyed noise; a state that every step changes in place, as replay
// buffers and statistics do.
class Toy final : public Objective {
 public:
  Toy(std::int64_t period, StopAt stop) : period_(period), stop_(stop), streams_(3) {
    trainable_.add("w", at::ones({4}).set_requires_grad(true));
    state_.add("sum", at::zeros({4}));
  }
  const ParameterSet& trainable() const override { return trainable_; }
  std::int64_t begin_step(std::int64_t step) override {
    step_ = step;
    const at::NoGradGuard no_grad;
    at::Tensor(state_.at("sum")).add_(trainable_.at("w").detach()).mul_(0.9);
    stop(Moment::kBegin);
    check_stop();
    return 3;
  }
  LossReport micro_batch(std::int64_t i) override {
    if (i == 1) {
      stop(Moment::kItem);
      stop(Moment::kHang);
    }
    if (stop_.moment != Moment::kBetweenItems) check_stop();
    const at::Tensor target =
        streams_.normal(Purpose::kPrior, static_cast<std::uint32_t>(step_), 0, i, 1, {4})[0] +
        state_.at("sum");
    LossReport report;
    report.loss = (trainable_.at("w") - target).square().sum();
    if (i == 1) stop(Moment::kBetweenItems);
    return report;
  }
  bool at_checkpoint() const override { return (step_ + 1) % period_ == 0; }
  ParameterSet state() const override { return state_; }
  void restore(const ParameterSet& state) override { assign(state_, state, "state"); }
  // Validation: it changes the state, as the choice of the best weights does.
  void follow(std::int64_t step) {
    const at::NoGradGuard no_grad;
    at::Tensor(state_.at("sum")).add_(0.5);
    if (stop_.moment == Moment::kFollowing && stop_.step == step) ::raise(SIGTERM);
    check_stop();
  }

 private:
  void stop(Moment moment) const {
    if (stop_.moment != moment || stop_.step != step_) return;
    ::raise(SIGTERM);
    while (moment == Moment::kHang) ::pause();
  }
  std::int64_t period_;
  StopAt stop_;
  RandomStreams streams_;
  std::int64_t step_ = 0;
  ParameterSet trainable_, state_;
};

constexpr std::int64_t kSteps = 8;

// Trains to the end, or until a stop; "" then.
std::string train_toy(const std::filesystem::path& out, std::int64_t period, StopAt stop,
                      bool resume) {
  Toy toy(period, stop);
  Run run(out, "toy", resume);
  TrainConfig config;
  config.steps = kSteps;
  config.average_decay = 0.5;
  config.checkpoint_every = 3;
  config.optimizer.learning_rate = 0.1;
  TrainHooks hooks;
  hooks.changes_state = true;
  hooks.after_step = [&](std::int64_t step, const ParameterSet& average) {
    if (step % 2 != 0) return;
    const SwappedWeights swapped(toy.trainable(), average);
    toy.follow(step);
    run.log(step, {{"validation_loss", toy.trainable().at("w").sum().item<double>()}});
  };
  std::string text;
  try {
    const TrainResult result = train(config, toy, run, hooks);
    text = cat(result.weights.at("w"), result.average.at("w"), toy.state().at("sum"));
  } catch (const Error& error) {
    EXPECT_EQ(static_cast<int>(error.kind()), static_cast<int>(ErrorKind::kStopped))
        << error.what();
    EXPECT_NE(std::string(error.what()).find("stopped by SIGTERM after step"), std::string::npos)
        << error.what();
  }
  forget_stop();
  return text;
}

// Without times and memory.
std::string log_of(const std::filesystem::path& run) {
  std::string out;
  for (auto line : read_json_lines(run / "metrics.jsonl")) {
    for (const char* measured : {"seconds", "peak_memory_mb"}) line.erase(measured);
    out += line.dump() + "\n";
  }
  return out;
}

std::string newest_checkpoint(const std::filesystem::path& run) {
  std::string out;
  for (const auto& entry : std::filesystem::directory_iterator(run / "checkpoints")) {
    out = std::max(out, entry.path().filename().string());
  }
  return out;
}

}  // namespace

TEST(train_last_step, AnyMomentIsContinuedExactly) {
  install_stop_handlers();
  set_thread_policy({2, 1});
  for (const std::int64_t period : {1, 3}) {
    const test::TempDir dir;
    const std::string whole = train_toy(dir / "whole", period, {}, false);
    ASSERT_NE(whole, "");
    int number = 0;
    for (const Moment moment :
         {Moment::kBegin, Moment::kItem, Moment::kBetweenItems, Moment::kFollowing}) {
      for (const std::int64_t step : {4, 6, 7}) {
        if (moment == Moment::kFollowing && step % 2 != 0) continue;
        const std::filesystem::path out = dir / cat("stopped-", number++);
        EXPECT_EQ(train_toy(out, period, {moment, step}, false), "") << "it was not stopped";
        const bool exactly =
            period == 1 && moment != Moment::kBetweenItems;  // there another worker may have taken
                                                             // the last micro-batch already
        if (exactly) {
          EXPECT_EQ(newest_checkpoint(out), cat("step-00000", step)) << "the last whole step";
        }
        EXPECT_EQ(train_toy(out, period, {}, true), whole)
            << "moment " << static_cast<int>(moment) << ", step " << step << ", period " << period;
        EXPECT_EQ(log_of(out), log_of(dir / "whole"))
            << "moment " << static_cast<int>(moment) << ", step " << step << ", period " << period;
      }
    }
  }
  set_thread_policy({1, 1});
}

TEST(train_last_step, ARunThatNobodyContinuesSavesNothing) {
  install_stop_handlers();
  const test::TempDir dir;
  Toy toy(1, {Moment::kItem, 4});
  tiltflow::Run run(dir / "run", "toy", false);
  TrainConfig config;
  config.steps = kSteps;
  TrainHooks hooks;
  hooks.lasting = false;
  test::expect_error(ErrorKind::kStopped, "stopped by SIGTERM",
                     [&] { train(config, toy, run, hooks); });
  EXPECT_EQ(stop_exit_code(), 128 + SIGTERM);
  forget_stop();
  EXPECT_EQ(newest_checkpoint(dir / "run"), "");
}

// The run of the next test, in a process that has no threads of libtorch yet: they do not survive a
// fork.
TEST(train_last_step, DISABLED_AStepThatHearsNothing) {
  const char* out = std::getenv("TILTFLOW_TEST_HUNG");
  ASSERT_NE(out, nullptr) << "is run by AStepThatHearsNothingLosesItselfOnly";
  install_stop_handlers();
  train_toy(out, 1, {Moment::kHang, 5}, false);
}

// A step that hears nothing: a thread of its own saves what the last whole step left.
TEST(train_last_step, AStepThatHearsNothingLosesItselfOnly) {
  const test::TempDir dir;
  const std::string whole = train_toy(dir / "whole", 1, {}, false);
  const pid_t child = ::fork();
  if (child == 0) {
    ::setenv("TILTFLOW_TEST_HUNG", (dir / "hung").c_str(), 1);
    std::freopen("/dev/null", "w", stderr);
    std::freopen("/dev/null", "w", stdout);
    ::execl("/proc/self/exe", "tiltflow_tests", "--gtest_also_run_disabled_tests",
            "--gtest_filter=train_last_step.DISABLED_AStepThatHearsNothing", nullptr);
    ::_exit(1);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 75);
  EXPECT_EQ(newest_checkpoint(dir / "hung"), "step-000005");
  EXPECT_EQ(train_toy(dir / "hung", 1, {}, true), whole);
  EXPECT_EQ(log_of(dir / "hung"), log_of(dir / "whole"));
}

}  // namespace tiltflow
