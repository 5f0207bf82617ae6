// What is said before the work: dry runs, `config check`, help, and the splits that figures are
// measured on.
#include "tests/program/program.h"
#include "tiltflow/io/image.h"
#include "tiltflow/tensor/random.h"

namespace tiltflow {
namespace {

using test::expect_message, test::tiny, test::Outcome, test::run;

void expect_parts(const Outcome& outcome, int code, const std::vector<std::string>& parts) {
  for (const std::string& part : parts) expect_message(outcome, code, part);
}

}  // namespace

TEST(program_check, DryRunsFindEverythingAndLeaveNothing) {
  const test::TempDir dir;
  const std::string out = (dir / "r").string();
  const std::string wrong = cat(tiny(),
                                "--set method.name=flow-grpo --set method.group=4 --set "
                                "check.judge=/nonexistent --set decoder.file=/missing ");
  const std::vector<std::string> found{"3 problems", "micro_batch = 2 is no multiple", "/missing",
                                       "/nonexistent"};
  expect_parts(run(cat("finetune recipes/methods-mnist-ink.toml", wrong, "--dry-run --out ", out)),
               4, found);
  expect_parts(run(cat("config check recipes/methods-mnist-ink.toml", wrong)), 4, found);
  expect_message(run(cat("finetune recipes/mnist-ink.toml", tiny(),
                         "--set check.judge=/nonexistent --out ", out)),
                 4, "/nonexistent");
  EXPECT_FALSE(std::filesystem::exists(out)) << "a start that failed claims no folder";
  expect_parts(run(cat("finetune recipes/mnist-ink.toml", tiny(),
                       "--set train.steps=1 --dry-run --out ", out)),
               0, {"1 step of 4 trajectories", "ok\n"});
  expect_message(
      run(cat("finetune recipes/mnist-ink.toml", tiny(), "--dry-run --out README.md/run")), 3,
      "is no folder");
  expect_message(run(cat("config check recipes/mnist-ink.toml", tiny())), 0, "mnist-ink.toml: ok");
  EXPECT_FALSE(std::filesystem::exists(out));
  expect_message(
      run(cat("sweep recipes/methods-mnist-ink.toml", tiny(),
              "--dry-run --set method.name=flow-grpo --set method.group=2 --vary micro_batch=2,3")),
      3, "micro_batch-3: method flow-grpo compares groups of 2");
}

TEST(program_check, ComparedConfigurations) {
  const Outcome diff =
      run("config diff recipes/mnist-ink.toml --set reward[0].scale=0.1 --unset seed");
  EXPECT_EQ(diff.code, 1);
  EXPECT_NE(diff.out.find("-> 0.1\n"), std::string::npos) << diff.out;
  EXPECT_EQ(run("config diff recipes/mnist-ink.toml").code, 0);
  expect_message(run("config show recipes/mnist-ink.toml --unset trian"), 3,
                 "--unset trian: unknown key (did you mean 'train'?)");
}

TEST(program_help, OneTextInEveryForm) {
  const Outcome help = run("help");
  EXPECT_EQ(help.code, 0) << help.err;
  EXPECT_EQ(help.out, run("--help").out);
  EXPECT_EQ(run("help eval").out, run("eval --help").out);
  EXPECT_EQ(run("help config show").out, run("config show --help").out);
  EXPECT_NE(run("help eval").out.find("--table"), std::string::npos);
  expect_message(run("help evla"), 2, "did you mean 'eval'");
  expect_message(run("config chek x"), 2,
                 "'chek' is not a verb of tiltflow config (did you mean 'check'?)");
  expect_message(run("sample --model x --stesp 3"), 2, "did you mean '--steps'");
}

// Noise has nothing to learn: an accuracy of 100 % would be that of the training pictures.
TEST(program_pretrain, HeldOutPicturesAreOfTheTestSplit) {
  const test::TempDir dir;
  const auto draw = [&](const std::string& folder, int seed) {
    for (const char* name : {"a", "b"}) {
      std::filesystem::create_directories(dir / folder / name);
      for (int i = 0; i < 8; ++i) {
        write_png(dir / folder / name / cat(i, ".png"),
                  RandomStreams(seed).uniform(Purpose::kProbe, name[0], i, 1, {1, 8, 8})[0]);
      }
    }
  };
  draw("flat", 1);
  draw("split/train", 1);
  draw("split/val", 2);
  write_file_atomic(dir / "c.toml",
                    "kind = \"classifier\"\nbatch = 8\nitem = 8\nshift = 0\n[data]\nformat = "
                    "\"folder\"\n[model]\nargs = { num_classes = 2, in_channels = 1, input_size = "
                    "8 }\n[train]\nsteps = 2\nwarmup = 0\n[compute]\nworkers = 1\n");
  const auto train = [&](const std::string& folder, const std::string& more) {
    return run(cat("pretrain ", (dir / "c.toml").string(),
                   " --set data.path=", (dir / folder).string(), " --out ",
                   (dir / ("run-" + folder)).string(), " ", more));
  };
  expect_parts(train("flat", ""), 4, {"test", "flat"});
  EXPECT_FALSE(std::filesystem::exists(dir / "run-flat"));
  expect_parts(
      train("flat",
            "--set kind=flow --set model.args.input_size=16 --set model.args.hidden_size=16 --set "
            "model.args.depth=1 --set model.args.num_heads=2"),
      3, {"the data are [1, 8, 8], the model makes [1, 16, 16]"});
  EXPECT_FALSE(std::filesystem::exists(dir / "run-flat")) << "a failed start leaves nothing";
  expect_message(run(cat("config check ", (dir / "c.toml").string(),
                         " --set data.path=", (dir / "flat").string())),
                 4, "test");
  expect_message(train("split", ""), 0, "accuracy on 16 held-out images");
  const Outcome own = train("flat", "--set evaluate_on=train");
  expect_message(own, 0, "accuracy on the 16 training images");
  EXPECT_EQ(own.err.find("held-out"), std::string::npos);
  EXPECT_TRUE(std::filesystem::exists(dir / "run-flat/model.safetensors"));
}

}  // namespace tiltflow
