// Run directories: who may write them, which checkpoints count, what a resume may change.
#include "tiltflow/train/run.h"
#include "tests/same_bytes.h"
#include "tests/support.h"
#include "tests/train/small_run.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/json_lines.h"

namespace tiltflow {
namespace {

namespace fs = std::filesystem;
using test::expect_error;

Checkpoint checkpoint(std::int64_t step) {
  ParameterSet set;
  set.add("w", at::full({2}, static_cast<double>(step)));
  return {step, {{"weights", set}}};
}

// A run that has trained up to these steps.
void make_run(const fs::path& folder, const RunStart& start,
              const std::vector<std::int64_t>& steps) {
  tiltflow::Run run(folder, start);
  for (const std::int64_t step : steps) run.save(checkpoint(step), 10);
}

std::vector<std::string> names_in(const fs::path& folder) {
  std::vector<std::string> out;
  for (const auto& entry : fs::directory_iterator(folder)) {
    out.push_back(entry.path().filename().string());
  }
  std::sort(out.begin(), out.end());
  return out;
}

void truncate_file(const fs::path& file, std::uintmax_t bytes) { fs::resize_file(file, bytes); }

TEST(train_run, OtherConfigurationsAndForeignFoldersAreRefused) {
  const test::TempDir dir;
  make_run(dir / "r", {"a = 1\n"}, {3});
  expect_error(ErrorKind::kConfig, "already holds a run",
               [&] { tiltflow::Run(dir / "r", "a = 1\n", false); });
  expect_error(ErrorKind::kConfig, "a was 1, now 2",
               [&] { tiltflow::Run(dir / "r", "a = 2\n", true); });
  fs::create_directories(dir / "foreign");
  write_file_atomic(dir / "foreign/letter.txt", "dear");
  expect_error(ErrorKind::kConfig, "not a run", [&] { tiltflow::Run(dir / "foreign", "", false); });
}

TEST(train_run, OneProcessWritesARun) {
  const test::TempDir dir;
  {
    const tiltflow::Run first(dir / "r", "a = 1\n", false);
    for (const bool resume : {false, true}) {
      expect_error(
          ErrorKind::kFailure,
          cat("another process writes to ", (dir / "r").string(), ": process ", ::getpid()),
          [&] { tiltflow::Run(dir / "r", "a = 1\n", resume); });
    }
  }
  EXPECT_NO_THROW(tiltflow::Run(dir / "r", "a = 1\n", true));
  write_file_atomic(dir / "r/.lock", "process 1 on elsewhere\n");  // its owner was killed
  EXPECT_NO_THROW(tiltflow::Run(dir / "r", "a = 1\n", true));
}

TEST(train_run, IncompleteCheckpointsDoNotCount) {
  const test::TempDir dir;
  tiltflow::Run run(dir / "r", "", false);
  run.save(checkpoint(3), 2);
  fs::create_directories(dir / "r/checkpoints/step-000009");
  EXPECT_EQ(run.latest()->step, 3);
  for (std::int64_t step : {4, 5, 6}) run.save(checkpoint(step), 2);
  EXPECT_EQ(run.latest()->step, 6);
  EXPECT_FALSE(fs::exists(dir / "r/checkpoints/step-000004"));
}

// Copies that people make are neither read nor deleted, whatever they are called.
TEST(train_run, OnlyExactNamesAreCheckpoints) {
  const test::TempDir dir;
  tiltflow::Run run(dir / "r", "", false);
  run.save(checkpoint(5), 2);
  const fs::path folder = dir / "r/checkpoints";
  const std::vector<std::string> copies{
      "backup-step-000005", "step-000005-good", "step-000005.bak", "step-000099 (copy)",
      "step-0000099",       "step-99",          "step-best",       "step-",
      "step--00001"};
  for (const std::string& name : copies) fs::copy(folder / "step-000005", folder / name);
  EXPECT_EQ(run.latest()->step, 5);
  for (std::int64_t step : {10, 15, 20}) run.save(checkpoint(step), 1);
  EXPECT_EQ(run.latest()->step, 20);
  std::vector<std::string> expected = copies;
  expected.push_back("step-000020");
  std::sort(expected.begin(), expected.end());
  EXPECT_EQ(names_in(folder), expected);
  EXPECT_EQ(step_name(1234567), "step-1234567");
  run.save(checkpoint(1234567), 1);
  EXPECT_EQ(run.latest()->step, 1234567);
}

// A damaged newest checkpoint: the one before counts, and the damaged one is out of the way when
// its step is saved again.
TEST(train_run, DamagedCheckpointsAreLeftOut) {
  const std::vector<std::function<void(const fs::path&)>> damages{
      [](const fs::path& folder) { truncate_file(folder / "weights.safetensors", 20); },
      [](const fs::path& folder) { truncate_file(folder / "weights.safetensors", 0); },
      [](const fs::path& folder) { fs::remove(folder / "weights.safetensors"); },
      [](const fs::path& folder) { write_file_atomic(folder / "state.json", "{\"step\": "); },
      [](const fs::path& folder) { write_file_atomic(folder / "state.json", "{\"step\": 4}"); },
      [](const fs::path& folder) { fs::remove(folder / "state.json"); },
  };
  for (std::size_t i = 0; i < damages.size(); ++i) {
    const test::TempDir dir;
    tiltflow::Run run(dir / "r", "", false);
    for (const std::int64_t step : {5, 10}) {
      run.save(checkpoint(step), 9);
      run.log(step, {{"loss", 1}});
    }
    damages[i](dir / "r/checkpoints/step-000010");
    const auto latest = run.latest();
    ASSERT_TRUE(latest) << i;
    EXPECT_EQ(latest->step, 5) << i;
    EXPECT_EQ(read_json_lines(dir / "r/metrics.jsonl").size(), 1u)
        << "steps after 5 are logged again";
    run.save(checkpoint(10), 9);
    EXPECT_EQ(run.latest()->step, 10) << i;
    EXPECT_EQ(names_in(dir / "r/checkpoints"),
              (std::vector<std::string>{"damaged-step-000010", "step-000005", "step-000010"}))
        << i;
  }
  const test::TempDir dir;
  tiltflow::Run run(dir / "r", "", false);
  run.save(checkpoint(5), 9);
  damages[0](dir / "r/checkpoints/step-000005");
  expect_error(ErrorKind::kBadFile, "no checkpoint in", [&] { run.latest(); });
}

// A start that failed before it trained anything does not claim the folder.
TEST(train_run, AFailedStartCanBeStartedAgain) {
  const test::TempDir dir;
  {
    tiltflow::Run run(dir / "r", "a = 1\n", false);
    run.log(0, {{"base_reward", 1}});
    run.save(checkpoint(0), 2);
  }
  write_file_atomic(dir / "r/samples/grid-step-000000.png", "");
  write_file_atomic(dir / "r/samples/mine.png", "");
  for (const bool resume : {false, true}) {
    const std::string other = resume ? "a = 3\n" : "a = 2\n";
    tiltflow::Run run(dir / "r", other, resume);
    EXPECT_EQ(read_file(dir / "r/config.toml"), other);
    EXPECT_FALSE(run.latest()) << "the checkpoint of another configuration";
    EXPECT_TRUE(read_json_lines(dir / "r/metrics.jsonl").empty());
    EXPECT_EQ(names_in(dir / "r/samples"), std::vector<std::string>{"mine.png"});
    run.save(checkpoint(0), 2);
  }
  {
    tiltflow::Run run(dir / "r", "a = 3\n", true);
    EXPECT_EQ(run.latest()->step, 0) << "the same one is continued";
    run.save(checkpoint(1), 2);
  }
  expect_error(ErrorKind::kConfig, "already holds a run",
               [&] { tiltflow::Run(dir / "r", "a = 4\n", false); });
}

TEST(train_run, FreeKeysMayChange) {
  const test::TempDir dir;
  const FreeKeys free{{"train.steps", "longer"}, {"compute.*", "machine"}};
  const auto start = [&](const std::string& config, bool resume) {
    return RunStart{config, {}, resume, false, free};
  };
  make_run(dir / "r", start("seed = 1\n[train]\nsteps = 5\n[compute]\nworkers = 1\n", false), {5});
  const std::string longer = "seed = 1\n[train]\nsteps = 9\n[compute]\nworkers = 4\n";
  {
    const tiltflow::Run run(dir / "r", start(longer, true));
    ASSERT_EQ(run.changes().size(), 2u);
    EXPECT_EQ(run.changes()[1].key, "train.steps");
    EXPECT_EQ(run.changes()[1].before, "5");
    EXPECT_EQ(run.changes()[1].now, "9");
  }
  EXPECT_EQ(read_file(dir / "r/config.toml"), longer);
  expect_error(ErrorKind::kConfig, "seed was 1, now 2; train.rate was nothing, now 0.5", [&] {
    tiltflow::Run(
        dir / "r",
        start("seed = 2\n[train]\nsteps = 9\nrate = 0.5\n[compute]\nworkers = 4\n", true));
  });
  EXPECT_EQ(read_file(dir / "r/config.toml"), longer) << "a refused resume changes nothing";
}

TEST(train_run, InputsCountByContent) {
  const test::TempDir dir;
  const auto start = [&](const std::string& file, bool resume, bool accept = false) {
    return RunStart{cat("[model]\nfile = \"", file, "\"\n"),
                    fingerprints_of({{"model.file", file, PathKind::kAll}}), resume, accept};
  };
  const std::string first = (dir / "first").string();
  const std::string moved = (dir / "moved").string();
  write_file_atomic(first, "weights");
  make_run(dir / "r", start(first, false), {5});
  fs::rename(first, moved);
  EXPECT_NO_THROW(tiltflow::Run(dir / "r", start(moved, true)));
  EXPECT_NE(read_file(dir / "r/config.toml").find(moved), std::string::npos);
  write_file_atomic(moved, "WEIGHTS");
  expect_error(ErrorKind::kConfig, cat("model.file: ", moved, " has another content"),
               [&] { tiltflow::Run(dir / "r", start(moved, true)); });
  EXPECT_NO_THROW(tiltflow::Run(dir / "r", start(moved, true, /*accept=*/true)));
  EXPECT_NO_THROW(tiltflow::Run(dir / "r", start(moved, true))) << "the new content was recorded";
}

// The schedule of a constant rate knows no length: a lengthened run ends with the bytes of a long
// one.
TEST(train_run, ALengthenedRunEqualsALongOne) {
  const test::TempDir dir;
  FinetuneConfig config = test::small_run(dir);
  config.train.optimizer.schedule = "constant";
  config.evaluation.every = 0;
  const auto train_to = [&](std::int64_t steps, const std::string& name, bool resume) {
    config.train.steps = steps;
    const FinetuneSetup setup = set_up(config);
    tiltflow::Run run(
        dir / name,
        RunStart{cat("[train]\nsteps = ", steps, "\n"), {}, resume, false, finetune_keys()});
    finetune(setup, run);
    return read_file(dir / name / "model.safetensors");
  };
  const std::string whole = train_to(4, "whole", false);
  train_to(2, "lengthened", false);
  write_file_atomic(dir / "lengthened/check.json", "{}");
  EXPECT_TRUE(test::same_bytes(train_to(4, "lengthened", true), whole));
  EXPECT_TRUE(fs::exists(dir / "lengthened/check-step-000002.json"))
      << "the check of the shorter run is none of the longer one";
  EXPECT_FALSE(fs::exists(dir / "lengthened/check.json"));
  expect_error(ErrorKind::kConfig, "has done 4 steps already",
               [&] { train_to(3, "lengthened", true); });
}

TEST(train_run, ARunThatEndedWithinABatchGoesOn) {
  const test::TempDir dir;
  FinetuneConfig config = test::small_run(dir);
  config.buffer_passes = 3;
  config.evaluation.every = 0;
  for (const std::int64_t steps : {2, 4}) {
    config.train.steps = steps;
    const FinetuneSetup setup = set_up(config);
    tiltflow::Run run(
        dir / "r",
        RunStart{cat("[train]\nsteps = ", steps, "\n"), {}, steps > 2, false, finetune_keys()});
    EXPECT_EQ(finetune(setup, run).steps, steps);
  }
  EXPECT_EQ(read_json_lines(dir / "r/metrics.jsonl").back().at("step"), 4);
}

}  // namespace
}  // namespace tiltflow
