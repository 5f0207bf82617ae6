#include <malloc.h>

#include "tests/same_bytes.h"
#include "tests/support.h"
#include "tests/train/ink_run.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/tensor/parallel.h"
#include "tiltflow/train/finetuning.h"
#include "tiltflow/train/pretraining_run.h"

namespace tiltflow {
namespace {

using test::ink_run;

std::string weights_of(const std::filesystem::path& run) {
  return read_file(run / "model.safetensors");
}

std::string run_to_end(const FinetuneConfig& config, const std::filesystem::path& out,
                       bool resume = false) {
  const FinetuneSetup setup = set_up(config);
  tiltflow::Run run(out, "x", resume);
  finetune(setup, run);
  return weights_of(out);
}

// A fatal error in a hook stands for a kill.
void die_after(std::int64_t last, const FinetuneConfig& config, const std::filesystem::path& out,
               double log_z = 0) {
  const FinetuneSetup setup = set_up(config);
  tiltflow::Run run(out, "x", false);
  FinetuneObjective objective(setup, make_policy(setup.flow, config.policy, 0),
                              make_method(config.method), log_z);
  const ParameterSet& start = objective.trainable();
  run.log(0, {{"base_reward", 0},
              {"base_reward_se", 0},
              {"log_z", log_z},
              {"log_z_se", 0},
              {"base_ess", 1}});
  run.save({0,
            {{"weights", start},
             {"average", start},
             {"optimizer", AdamW(config.train.optimizer, start).state()}}},
           2);
  TrainHooks hooks;
  hooks.after_step = [last](std::int64_t step, const ParameterSet&) {
    if (step == last) fail(ErrorKind::kFailure, "killed");
  };
  EXPECT_THROW(train(config.train, objective, run, hooks), Error);
}

// Killed after five steps and resumed: the same bytes as without.
void expect_resumes(const FinetuneConfig& config, const test::TempDir& dir) {
  const std::string whole = run_to_end(config, dir / "whole");
  die_after(5, config, dir / "killed");
  EXPECT_TRUE(test::same_bytes(run_to_end(config, dir / "killed", true), whole));
}

std::vector<double> evaluations_logged(const std::filesystem::path& run) {
  std::vector<double> out;
  for (const auto& line : read_json_lines(run / "metrics.jsonl")) {
    if (line.contains("evaluations")) out.push_back(line["evaluations"].get<double>());
  }
  return out;
}

}  // namespace

TEST(train_finetuning, ResumeIsBitExact) {
  for (const char* policy : {"full", "lora"}) {
    const test::TempDir dir;
    FinetuneConfig config = ink_run(dir, policy);
    const std::string whole = run_to_end(config, dir / "whole");
    die_after(5, config, dir / "killed");
    EXPECT_TRUE(test::same_bytes(run_to_end(config, dir / "killed", true), whole)) << policy;
    // steps were not logged twice
    std::map<std::int64_t, int> losses;
    for (const auto& line : read_json_lines(dir / "killed/metrics.jsonl")) {
      if (line.contains("loss")) ++losses[line["step"].get<std::int64_t>()];
    }
    EXPECT_EQ(losses.size(), 7u);
    for (const auto& [step, count] : losses) EXPECT_EQ(count, 1) << step;
  }
}

// Every method with both policies: it trains, and a run that is stopped and continued ends with the
// same bytes.
TEST(train_finetuning, EveryMethodTrainsAndResumes) {
  for (const MethodListing& m : method_listing()) {
    for (const char* policy : {"full", "lora"}) {
      const test::TempDir dir;
      FinetuneConfig config = ink_run(dir, policy);
      config.method.name = m.name;
      if (m.name == "reciprocal-adjoint-matching" || m.name == "value-regression") {
        continue;  // another base, another policy: below
      }
      config.method.policy_gradient.advantage.group = config.method.endpoint.advantage.group = 2;
      config.evaluation.every = 0;
      config.train.steps = 4;
      const std::string whole = run_to_end(config, dir / "whole");
      const ParameterSet before = read_safetensors(dir / "base.safetensors").tensors;
      const ParameterSet after = read_safetensors(dir / "whole/model.safetensors").tensors;
      double moved = 0;
      for (const auto& [name, tensor] : before) {
        moved = std::max(moved, (tensor - after.at(name)).abs().max().item<double>());
      }
      EXPECT_GT(moved, 0) << m.name << " " << policy;
      std::filesystem::copy(dir / "whole", dir / "stopped",
                            std::filesystem::copy_options::recursive);
      std::filesystem::remove_all(dir / "stopped/checkpoints/step-000004");
      std::filesystem::remove(dir / "stopped/model.safetensors");
      EXPECT_TRUE(test::same_bytes(run_to_end(config, dir / "stopped", true), whole))
          << m.name << " " << policy;
    }
  }
}

// The replay buffer is part of what a resume brings back.
TEST(train_finetuning, ReplayResumes) {
  const test::TempDir dir;
  FinetuneConfig config = ink_run(dir);
  config.model = {};
  config.model.family = "gaussian-mixture";
  config.model.args = {{"means", "0 0"}};
  config.policy.kind = "control";
  config.policy.control.kind = "mlp";
  config.policy.control.width = 8;
  RewardTerm reward;
  reward.name = "log-density";
  reward.over_normal = true;
  reward.args = {{"means", "1 0; -1 0"}, {"deviations", "0.6"}};
  config.reward = {reward};
  config.labels = {};
  config.guidance = {};
  config.evaluation.every = 0;
  config.train.steps = 7;
  config.method.name = "reciprocal-adjoint-matching";
  config.method.reciprocal.replay.refresh = 3;
  const std::string whole = run_to_end(config, dir / "whole");
  die_after(5, config, dir / "killed");
  EXPECT_TRUE(test::same_bytes(run_to_end(config, dir / "killed", true), whole));
}

TEST(train_finetuning, ValueRegressionResumesAndRefusesOtherPolicies) {
  const test::TempDir dir;
  FinetuneConfig config = ink_run(dir, "control");
  config.policy.control = {"potential", 8, 2};
  config.method.name = "value-regression";
  config.method.value.replay.refresh = 3;
  config.evaluation.every = 0;
  const std::string whole = run_to_end(config, dir / "whole");
  double log_z = 0;  // scales the weights: a resume reads the first start's
  for (const auto& line : read_json_lines(dir / "whole/metrics.jsonl")) {
    if (line.contains("log_z")) log_z = line["log_z"].get<double>();
  }
  die_after(5, config, dir / "killed", log_z);
  EXPECT_TRUE(test::same_bytes(run_to_end(config, dir / "killed", true), whole));
  config.policy.kind = "full";
  test::expect_error(ErrorKind::kConfig, "fits a scalar network", [&] { set_up(config); });
  config.method.name = "reciprocal-adjoint-matching";
  test::expect_error(ErrorKind::kConfig, "standard normal base", [&] { set_up(config); });
  config.method.name = "draft";
  config.buffer_passes = 2;
  test::expect_error(ErrorKind::kConfig, "buffer_passes must be 1", [&] { set_up(config); });
}

// The learned reward, its optimiser and its buffer, too.
TEST(train_finetuning, SurrogateResumes) {
  const test::TempDir dir;
  FinetuneConfig config = ink_run(dir);
  config.surrogate.every = 3;
  config.surrogate.samples = 8;
  config.surrogate.fits = 3;
  config.surrogate.width = 8;
  expect_resumes(config, dir);
}

// The same for the classifier of mode-preserving rewards.
TEST(train_finetuning, ModesResume) {
  const test::TempDir dir;
  FinetuneConfig config = ink_run(dir);
  config.method.name = "draft";
  config.sampler.name = "half-noise";
  config.buffer_passes = 1;
  config.modes.codes = 3;
  config.modes.every = 2;
  config.modes.samples = 8;
  config.modes.fits = 3;
  config.modes.width = 8;
  expect_resumes(config, dir);
}

// Memory in use after 500 iterations is what it was after 50: nothing is kept that grows.
TEST(train_finetuning, MemoryStaysConstant) {
  const test::TempDir dir;
  FinetuneConfig config = ink_run(dir);
  config.batch = 2;
  config.evaluation.every = 0;
  config.train.checkpoint_every = 1000;
  config.compute.workers = 1;
  const auto in_use_after = [&](std::int64_t steps) {
    config.train.steps = steps;
    run_to_end(config, dir / cat("run-", steps));
    const struct mallinfo2 memory = mallinfo2();
    return static_cast<double>(memory.uordblks + memory.hblkhd);
  };
  in_use_after(20);  // what is made once
  const double few = in_use_after(50);
  const double many = in_use_after(500);
  EXPECT_LT(many - few, 100e3) << "bytes; 450 iterations more";
}

TEST(train_finetuning, WorkersAndItemsDoNotMatter) {
  const test::TempDir dir;
  FinetuneConfig config = ink_run(dir);
  const std::string two = run_to_end(config, dir / "two");
  config.compute.workers = 1;
  EXPECT_TRUE(test::same_bytes(run_to_end(config, dir / "one"), two))
      << "the number of workers changed the result";
  config.micro_batch = 6;  // another order of summation, the same sum
  config.method.adjoint.clip_quantile = 0;
  run_to_end(config, dir / "whole");
  config.micro_batch = 1;
  run_to_end(config, dir / "single");
  const ParameterSet a = read_safetensors(dir / "whole/model.safetensors").tensors;
  const ParameterSet b = read_safetensors(dir / "single/model.safetensors").tensors;
  for (const auto& [name, tensor] : a) {
    EXPECT_LT((tensor - b.at(name)).abs().max().item<double>(), 1e-3) << name;
  }
  set_thread_policy({1, 1});
}

TEST(train_finetuning, EvaluationsPerIterationAreLogged) {
  const test::TempDir dir;
  for (const auto& [policy, backward] : {std::pair{"full", 2}, {"lora", 1}}) {
    const FinetuneConfig config = ink_run(dir, policy);
    run_to_end(config, dir / policy);
    const std::vector<double> logged = evaluations_logged(dir / policy);
    EXPECT_EQ(logged.size(), 7u) << "one figure a step";
    for (const double one : logged) EXPECT_NEAR(one, 5 + 2 * 4 + 1 + 3 * backward, 1e-9);
  }
}

// The table of docs/methods.md: 5 sampler steps, 4 noisings; a backward pass counts twice.
TEST(train_finetuning, EvaluationsOfEveryMethodAreThoseDocumented) {
  const std::map<std::string, double> expected{
      {"discrete-adjoint", 10 + 2 * 5},
      {"log-variance", 10 + 2 * 5},
      {"trajectory-balance", 10 + 2 * 5},
      {"cross-entropy", 10 + 2 * 5},
      {"flow-grpo", 10 + 2 * 5},
      {"rwr", 9 + 2 * 4},
      {"best-of-group", 9 + 2 * 4},
      {"diffusion-nft", 9 + 2 * 4},
      {"advantage-flow", 9 + 2 * 4},
      {"ram", 13 + 2 * 4},
      {"dpo", 13 + 2 * 4},
      {"draft", 5 + 2},
      {"basic-adjoint-matching", 5 + 1 + 2 * 2 * 4 + 2 * 5},
      {"efficient-adjoint-matching", 5 + 1 + 4 + 2 * 4},
      {"draft-lv", 7 + 2 * 3},
      {"continuous-adjoint", 5 + 2 * 2 * 5 + 2 * 5},
      {"socm", 6 + 2 * 4 + 2 * 5},
      {"socm-adjoint", 6 + 2 * 4 + 2 * 5},
      {"variance", 10 + 2 * 5},
      {"grpo-guard", 10 + 2 * 5},
      {"advantage-weighted-matching", 9 + 2 * 4},
      {"alignprop", 5 + 2 * 3},
      {"leap-align", 7 + 2 * 2}};
  const test::TempDir dir;
  for (const auto& [name, evaluations] : expected) {
    FinetuneConfig config = ink_run(dir);
    config.method.name = name;
    config.method.policy_gradient.advantage.group = config.method.endpoint.advantage.group = 2;
    config.evaluation.every = 0;
    config.train.steps = 1;
    run_to_end(config, dir / name);
    const std::vector<double> logged = evaluations_logged(dir / name);
    ASSERT_EQ(logged.size(), 1u) << name;
    EXPECT_NEAR(logged[0], evaluations, 1e-9) << name;
  }
}

TEST(train_finetuning, BufferReusesTrajectoriesAndLogsEss) {
  const test::TempDir dir;
  FinetuneConfig config = ink_run(dir);
  config.buffer_passes = 3;
  config.train.steps = 6;
  run_to_end(config, dir / "run");
  int fresh = 0;
  int reused = 0;
  for (const auto& line : read_json_lines(dir / "run/metrics.jsonl")) {
    if (!line.contains("ess")) continue;
    (line["evaluations"].get<double>() > 12 ? fresh : reused) += 1;
    EXPECT_GT(line["ess"].get<double>(), 0);
    EXPECT_LE(line["ess"].get<double>(), 1 + 1e-6);
  }
  EXPECT_EQ(fresh, 2);
  EXPECT_EQ(reused, 4);
}

}  // namespace tiltflow
