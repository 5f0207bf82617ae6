#include "tiltflow/noise/assign_run.h"
#include "tests/noise/toy_generator.h"
#include "tests/same_bytes.h"
#include "tests/support.h"
#include "tiltflow/base/file.h"
#include "tiltflow/io/json_lines.h"

namespace tiltflow {
namespace {

using test::kAssignStreams;
using test::toy_generator;

// ---- runs in folders

struct Scene {
  test::TempDir dir;
  std::unique_ptr<Generator> generator = toy_generator(64);
  AssignConfig config;
  std::vector<Target> targets;
  Scene() {
    config.steps = 15;
    config.screen = 3;
    config.restarts = 2;
    config.chunk = 4;
    config.tile = 4;
    const at::Tensor images =
        generator->generate(kAssignStreams.normal(Purpose::kExact, 0, 0, 0, 13, {64}), {});
    for (std::int64_t i = 0; i < 13; ++i) {
      targets.push_back(
          {i, "t", [images, i] { return images[i]; }, [] { return std::int64_t{0}; }});
    }
  }
  AssignSummary run(const std::string& name, std::int64_t shard = 0, std::int64_t shards = 1,
                    bool retry = false) {
    const Assigner assigner(*generator, config, kAssignStreams);
    AssignRunOptions o;
    o.out = dir / name;
    o.start.config = "a = 1\n";
    o.shard = shard;
    o.shards = shards;
    o.retry_failed = retry;
    return run_assignment(*generator, assigner, config, targets, kAssignStreams, o);
  }
  std::string text(const std::string& file) const { return read_file(dir / file); }
};

}  // namespace

TEST(noise_assign_run, InterruptionsAndShardsLeaveNoTrace) {
  Scene s;
  EXPECT_EQ(s.run("whole").assigned, 13);
  // Killed after the second chunk, with a log line cut off and a row half written.
  std::filesystem::create_directories(s.dir / "cut/store");
  for (const char* file : {"request.toml", "rows.bin"}) {
    std::filesystem::copy_file(s.dir / "whole/store" / file, s.dir / "cut/store" / file);
  }
  const std::string log = s.text("whole/store/log.jsonl");
  std::size_t end = 0;
  for (int i = 0; i < 6; ++i) end = log.find('\n', end) + 1;
  write_file_atomic(s.dir / "cut/store/log.jsonl", log.substr(0, end + 20));
  std::filesystem::resize_file(s.dir / "cut/store/rows.bin", 6 * 2 * 64 * 4 + 10);
  EXPECT_TRUE(s.run("cut").complete);
  EXPECT_FALSE(s.run("shards", 1, 2).complete);
  EXPECT_TRUE(s.run("shards", 0, 2).complete);
  for (const char* file :
       {"assigned.safetensors", "manifest.jsonl", "failures.jsonl", "summary.json", "noise.json"}) {
    EXPECT_TRUE(
        test::same_bytes(s.text(std::string("cut/") + file), s.text(std::string("whole/") + file)))
        << file;
    EXPECT_TRUE(test::same_bytes(s.text(std::string("shards/") + file),
                                 s.text(std::string("whole/") + file)))
        << file;
  }
  EXPECT_TRUE(test::same_bytes(s.text("cut/store/rows.bin"), s.text("whole/store/rows.bin")));
  EXPECT_TRUE(test::same_bytes(s.text("cut/store/log.jsonl"), s.text("whole/store/log.jsonl")));
  // A row that was damaged on disk is found by its checksum and made again.
  std::string rows = s.text("cut/store/rows.bin");
  rows[100] ^= 1;
  write_file_atomic(s.dir / "cut/store/rows.bin", rows);
  EXPECT_EQ(s.run("cut").assigned, 13);
  EXPECT_TRUE(
      test::same_bytes(s.text("cut/assigned.safetensors"), s.text("whole/assigned.safetensors")));
  const Assigner assigner(*s.generator, s.config, kAssignStreams);
  AssignRunOptions other;
  other.out = s.dir / "cut";
  other.start.config = "a = 2\n";
  test::expect_error(ErrorKind::kConfig, "another configuration", [&] {
    run_assignment(*s.generator, assigner, s.config, s.targets, kAssignStreams, other);
  });
}

TEST(noise_assign_run, BadTargetsBecomeFailuresAndCanBeTriedAgain) {
  Scene s;
  s.run("good");
  const std::vector<Target> good = s.targets;
  s.targets[3].image = []() -> at::Tensor {
    fail(ErrorKind::kBadFile, "the picture is truncated");
  };
  s.targets[5].image = [] { return at::zeros({1, 3, 3}); };
  s.targets[6].image = [] { return at::full({1, 4, 4}, NAN); };
  AssignSummary summary = s.run("bad");
  EXPECT_TRUE(summary.complete);
  EXPECT_EQ(summary.assigned, 10);
  EXPECT_EQ(summary.failed, 3);
  const auto failures = read_json_lines(s.dir / "bad/failures.jsonl");
  ASSERT_EQ(failures.size(), 3U);
  EXPECT_EQ(failures[0]["kind"], "bad-file");
  EXPECT_NE(failures[1]["message"].get<std::string>().find("the generator makes [1, 4, 4]"),
            std::string::npos);
  s.targets = good;
  EXPECT_EQ(s.run("bad").failed, 3);  // failures stay until they are asked for
  summary = s.run("bad", 0, 1, true);
  EXPECT_EQ(summary.failed, 0);
  EXPECT_EQ(s.text("bad/assigned.safetensors"), s.text("good/assigned.safetensors"));
}

TEST(noise_assign_run, PairsAndFoldersAreListsOfSingleTargets) {
  const test::TempDir dir;
  write_file_atomic(dir / "pairs.jsonl",
                    "{\"image\": \"a.png\", \"label\": 3}\n{\"image\": \"gone.png\", \"label\": "
                    "1}\nnonsense\n{\"image\": \"a.png\"}\n");
  const auto generator = load_generator(test::golden_onestep("cifar_generator.safetensors"));
  write_file_atomic(dir / "a.png", "no picture");
  TargetsConfig c;
  c.format = "pairs";
  c.path = dir.path().string();
  const std::vector<Target> list = list_targets(c);
  ASSERT_EQ(list.size(), 4U);
  for (const Target& t : list) {
    test::expect_error(ErrorKind::kBadFile, "", [&] { read_target(t, *generator); });
  }
  c.first = 9;
  test::expect_error(ErrorKind::kConfig, "there are 4 targets", [&] { list_targets(c); });
}

}  // namespace tiltflow
