// What a run would stumble over later is found before it starts, everything at once, and nothing is
// left behind.
#include "tiltflow/train/start_check.h"

#include <torch/csrc/jit/api/module.h>

#include "tests/support.h"
#include "tests/train/small_run.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/train/run.h"

namespace tiltflow {
namespace {

// A TorchScript reward in place of the judge's.
FinetuneConfig with_module(const test::TempDir& dir, const std::string& body,
                           const std::string& method) {
  torch::jit::Module module("R");
  module.define("def forward(self, x):\n" + body + "\n");
  module.save((dir / "r.pt").string());
  FinetuneConfig config = test::small_run(dir);
  config.reward[0] = RewardTerm{};
  config.reward[0].name = "torchscript";
  config.reward[0].file = (dir / "r.pt").string();
  config.method.name = method;
  config.method.policy_gradient.advantage.group = 2;
  config.method.endpoint.advantage.group = 2;
  return config;
}

std::string problem_of(const std::function<void()>& work) {
  try {
    work();
  } catch (const Error& error) {
    return cat(error.what(), " | ", error.hint());
  }
  return "none";
}

void expect_part(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << part << "\nin: " << text;
}

}  // namespace

TEST(train_start_check, AGoodRunPasses) {
  const test::TempDir dir;
  FinetuneConfig config = test::small_run(dir);
  config.check.judge = config.reward[0].judge;
  for (const char* kind : {"full", "lora", "control"}) {
    config.policy.kind = kind;
    EXPECT_NO_THROW(check_start(set_up(config))) << kind;
  }
}

TEST(train_start_check, AllProblemsOfAConfigurationAtOnce) {
  const test::TempDir dir;
  FinetuneConfig config = test::small_run(dir);
  config.decoder.file = (dir / "no-decoder").string();
  config.reward[0].judge = (dir / "no-judge").string();
  config.method.name = "flow-grpo";
  config.method.policy_gradient.advantage.group = 4;  // micro-batch = 2
  config.labels.kind = "fixed";
  config.labels.label = 77;
  const std::string text = problem_of([&] { set_up(config); });
  expect_part(text, "4 problems");
  for (const char* part : {"no-decoder", "no-judge", "micro_batch = 2 is no multiple", "77"}) {
    expect_part(text, part);
  }
}

TEST(train_start_check, JudgesAndPairsAreOpened) {
  const test::TempDir dir;
  FinetuneConfig config = test::small_run(dir);
  config.check.judge = (dir / "missing.safetensors").string();
  expect_part(problem_of([&] { set_up(config); }), "missing.safetensors");
  config = test::small_run(dir);
  config.method.name = "dpo";
  config.method.endpoint.pairs = (dir / "pairs.safetensors").string();
  ParameterSet pairs;
  pairs.add("chosen", at::zeros({2, 3}));
  write_safetensors(dir / "pairs.safetensors", pairs);
  expect_part(problem_of([&] { check_start(set_up(config)); }), "'chosen' is not a row of samples");
  config = test::small_run(dir);
  ClassifierConfig other;
  other.input_size = 12;
  other.width = 4;
  other.features = 6;
  other.num_classes = 3;
  save_classifier(dir / "other.safetensors", other, init_classifier(other, RandomStreams(2)));
  config.check.judge = (dir / "other.safetensors").string();
  expect_part(problem_of([&] { check_start(set_up(config)); }),
              "sees pictures [1, 12, 12], the model makes [1, 8, 8]");
}

// A black box serves methods that need no gradient; the others are refused before anything is
// sampled, with the names of those that do.
TEST(train_start_check, RewardsWithoutGradient) {
  const test::TempDir dir;
  const std::string counted = "  return (x.flatten(1).mean(1) * 1000).round()";
  const std::string detached = "  return x.detach().flatten(1).mean(1)";
  for (const std::string& body : {counted, detached}) {
    for (const char* method :
         {"flow-grpo", "rwr", "diffusion-nft", "log-variance", "best-of-group"}) {
      const FinetuneSetup setup = set_up(with_module(dir, body, method));
      EXPECT_FALSE(setup.reward_gradient);
      EXPECT_NO_THROW(check_start(setup)) << method;
    }
    const std::string text =
        problem_of([&] { check_start(set_up(with_module(dir, body, "adjoint-matching"))); });
    for (const char* part : {"adjoint-matching needs the reward's gradient", "r.pt has none",
                             "flow-grpo", "rwr", "surrogate.every"}) {
      expect_part(text, part);
    }
    FinetuneConfig learned = with_module(dir, body, "adjoint-matching");
    learned.surrogate.every = 1;
    EXPECT_NO_THROW(check_start(set_up(learned)));
  }
  FinetuneConfig declared = test::small_run(dir);
  declared.reward[0].gradient = false;
  expect_part(problem_of([&] { set_up(declared); }), "needs the reward's gradient");
  FinetuneConfig mixed = with_module(dir, detached, "adjoint-matching");
  mixed.reward.emplace_back();  // ink beside it has a gradient, the sum lacks the module's
  expect_part(problem_of([&] { set_up(mixed); }), "r.pt has none");
}

TEST(train_start_check, ScoresMustNotDependOnTheBatch) {
  const test::TempDir dir;
  const auto problem = [&](const std::string& body) {
    return problem_of([&] { check_start(set_up(with_module(dir, body, "rwr"))); });
  };
  expect_part(
      problem(
          "  y = x.flatten(1).mean(1)\n  return (y - y.mean()) / (y.std(unbiased=False) + 0.001)"),
      "beside another one");
  expect_part(
      problem("  y = x.flatten(1).mean(1)\n  assert x.size(0) > 1, \"wants two\"\n  return y"),
      "wants two");
  expect_part(problem("  return x.flatten(1).mean(1) + float('nan')"), "NaN");
  EXPECT_EQ(problem("  return x.flatten(1).mean(1) + torch.rand([x.size(0)])"), "none")
      << "random rewards get a warning";
}

TEST(train_start_check, FoldersThatCannotBeMade) {
  const test::TempDir dir;
  write_file_atomic(dir / "file", "x");
  EXPECT_NO_THROW(check_output_folder(dir / "a/b/c", 1));
  EXPECT_FALSE(std::filesystem::exists(dir / "a"));
  test::expect_error(ErrorKind::kConfig, "is no folder",
                     [&] { check_output_folder(dir / "file/run", 1); });
  make_directories(dir / "old/checkpoints/step-000002");
  write_file_atomic(dir / "old/checkpoints/step-000002/DONE", "");
  write_file_atomic(dir / "old/config.toml", "");
  test::expect_error(ErrorKind::kConfig, "already holds a run",
                     [&] { require_startable(dir / "old", {}); });
  RunStart resumed;
  resumed.resume = true;
  EXPECT_NO_THROW(require_startable(dir / "old", resumed));
  resumed.config = "seed = 1\n";
  test::expect_error(ErrorKind::kConfig, "seed", [&] { require_startable(dir / "old", resumed); });
  make_directories(dir / "letters");
  write_file_atomic(dir / "letters/one.txt", "dear");
  test::expect_error(ErrorKind::kConfig, "exists and is not a run",
                     [&] { require_startable(dir / "letters", {}); });
  test::expect_error(ErrorKind::kConfig, "the run needs about",
                     [&] { check_output_folder(dir / "run", 1e18); });
}

}  // namespace tiltflow
