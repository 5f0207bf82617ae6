// The program among others: closed descriptors, full disks, pipes without readers, launchers and
// children that die.
#include <csignal>

#include "tests/program/program.h"
#include "tiltflow/io/json_lines.h"

namespace tiltflow {

using test::expect_message;
using test::Outcome;
using test::shell;
using test::tiny;

namespace {

std::string newest_checkpoint(const std::filesystem::path& run) {
  std::string out;
  for (const auto& entry : std::filesystem::directory_iterator(run / "checkpoints")) {
    out = std::max(out, entry.path().filename().string());
  }
  return out;
}

std::int64_t last_logged(const std::filesystem::path& run) {
  return read_json_lines(run / "metrics.jsonl").back()["step"].get<std::int64_t>();
}

}  // namespace

TEST(program_streams, ClosedDescriptorsAreNobodysFiles) {
  const test::TempDir dir;
  const Outcome outcome = shell(dir, cat("$TILTFLOW finetune recipes/mnist-ink.toml", tiny(),
                                         "--set train.steps=2 --out $D/r <&- >&- 2>&-"));
  ASSERT_EQ(outcome.code, 0);
  for (const std::string& line : split(read_file(dir / "r/metrics.jsonl"), '\n')) {
    EXPECT_TRUE(line.empty() || line[0] == '{') << line;
  }
  EXPECT_EQ(last_logged(dir / "r"), 2);
}

TEST(program_streams, OutputThatCannotBeWrittenIsAnError) {
  const test::TempDir dir;
  Outcome outcome = shell(dir, "$TILTFLOW config show > /dev/full");
  expect_message(outcome, 1, "write error: No space left on device");
  // Nobody reads: the exit code of other tools, and no words. Errors that cannot be told change
  // nothing.
  outcome = shell(dir, "$TILTFLOW config show --docs | true; exit ${PIPESTATUS[0]}");
  EXPECT_EQ(outcome.code, 128 + SIGPIPE);
  EXPECT_EQ(outcome.err, "");
  outcome = shell(dir, "$TILTFLOW config check recipes/mnist-ink.toml 2> /dev/full");
  EXPECT_EQ(outcome.code, 0);
}

TEST(program_processes, LeftoverVariablesAreNamed) {
  const test::TempDir dir;
  const Outcome outcome =
      shell(dir, cat("WORLD_SIZE=2 RANK=0 $TILTFLOW finetune recipes/mnist-ink.toml --out $D/r"));
  expect_message(outcome, 3, "WORLD_SIZE = 2 and RANK = 0");
  EXPECT_NE(outcome.err.find("unset WORLD_SIZE RANK"), std::string::npos) << outcome.err;
  EXPECT_FALSE(std::filesystem::exists(dir / "r"));
}

// A killed child takes the others along and is named; what was computed is saved. A killed launcher
// takes its children along.
TEST(program_processes, LaunchersAndChildrenDieTogether) {
  const test::TempDir dir;
  const std::string begin = cat("$TILTFLOW --procs 2 finetune recipes/mnist-ink.toml", tiny(),
                                "--set buffer_passes=1 --set train.steps=100000 --set "
                                "train.checkpoint_every=50000 --set evaluation.every=0 --out $D/");
  const auto until = [](const std::string& run) {
    return cat(
        " &\npid=$!\ntrap 'kill -KILL $pid 2>/dev/null' EXIT\nuntil grep -qs '\"loss\"' $D/", run,
        "/metrics.jsonl; do kill -0 $pid || exit 8; sleep 0.02; done\nkids=$(pgrep -P $pid)\n");
  };
  Outcome outcome =
      shell(dir, cat(begin, "r", until("r"), "set -- $kids\nkill -KILL $2\nwait $pid"));
  EXPECT_EQ(outcome.code, 128 + SIGKILL) << outcome.err;
  EXPECT_NE(outcome.err.find("rank 1 was killed by signal 9"), std::string::npos) << outcome.err;
  EXPECT_EQ(outcome.err.find("frame #"), std::string::npos) << outcome.err;
  EXPECT_NE(newest_checkpoint(dir / "r"), "step-000000")
      << "the last whole step is saved when a partner is lost";
  EXPECT_EQ(newest_checkpoint(dir / "r").substr(5),
            cat(std::string(6 - cat(last_logged(dir / "r")).size(), '0'), last_logged(dir / "r")));
  outcome = shell(
      dir,
      cat(begin, "orphans", until("orphans"),
          "[ $(echo $kids | wc -w) = 2 ] || exit 7\nkill -KILL $pid\n",
          "alive() { grep -qs 'State:.[^XZ]' $(printf '/proc/%s/status ' $kids); }\n",
          "for i in $(seq 150); do alive || exit 0; sleep 0.02; done\nkill -KILL $kids\nexit 9"));
  EXPECT_EQ(outcome.code, 0) << "children outlived their launcher: " << outcome.err;
}

TEST(program_signals, AHangUpSavesAndAnIgnoredOneDoesNothing) {
  const test::TempDir dir;
  const std::string ask =
      cat("finetune recipes/mnist-ink.toml", tiny(),
          "--set buffer_passes=1 --set train.checkpoint_every=50000 --set evaluation.every=0 ");
  const Outcome outcome =
      shell(dir, cat("$TILTFLOW ", ask, "--set train.steps=100000 --out $D/r &\npid=$!\n",
                     "(trap '' HUP; exec $TILTFLOW ", ask,
                     "--set train.steps=300 --out $D/ignored) &\nother=$!\n",
                     "trap 'kill -KILL $pid $other 2>/dev/null' EXIT\n",
                     "for r in r ignored; do until grep -qs '\"loss\"' $D/$r/metrics.jsonl; do "
                     "kill -0 $pid && kill -0 $other || exit 8; sleep 0.02; done; done\n",
                     "kill -HUP $pid $other\nwait $other\necho $?\nwait $pid"));
  EXPECT_EQ(outcome.code, 75) << outcome.err;
  EXPECT_NE(outcome.err.find("stopped by SIGHUP after step"), std::string::npos) << outcome.err;
  EXPECT_NE(newest_checkpoint(dir / "r"), "step-000000");
  EXPECT_EQ(outcome.out.substr(0, 2), "0\n") << "nohup";
}

}  // namespace tiltflow
