// tiltflow compare as a user runs it.
#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "tests/program/program.h"

namespace tiltflow::test {
namespace {

const char* const kTwoMethods = R"(
title = "two <methods>"
config = "task.toml"
set = [
  "batch=16", "micro_batch=8", "sampler.steps=5", "evaluation.samples=16",
  "evaluation.base_samples=32", "evaluation.every=5", "train.checkpoint_every=5",
]
seeds = [0, 1]
scales = [1, 2]
evaluations = 2000
samples = 200
[[held_out]]
name = "linear"
slope = [1.0, 0.0]
[[run]]
name = "variance of logs"
set = ["method.name=log-variance"]
[[run]]
name = "draft"
set = ["method.name=draft"]
)";

// Files and figures of eight runs of two methods, two seeds and two scales.
void expect_figures(const std::filesystem::path& out) {
  for (const char* file : {"compare.html", "compare.md", "compare.json", "base.safetensors",
                           "runs/variance_of_logs_x2_seed1/model.safetensors",
                           "runs/draft_x1_seed0/report.html", "runs/draft_x1_seed0/figures.json"}) {
    EXPECT_TRUE(std::filesystem::exists(out / file)) << file;
  }
  const auto all = nlohmann::json::parse(read_file(out / "compare.json"));
  ASSERT_EQ(all["runs"].size(), 8U);
  for (const auto& one : all["runs"]) {
    EXPECT_EQ(one["status"], "done");
    const double each = one["method"] == "draft"
                            ? (5 + 1.0) * 16
                            : (5 + 5 + 5.0) * 16;  // a control network's backward counts once
    EXPECT_EQ(one["steps"].get<double>(), std::floor(2000 / each)) << one["method"];
    EXPECT_GT(one["figures"]["held out: linear"]["se"].get<double>(), 0);
    EXPECT_GT(one["figures"]["control cost"]["value"].get<double>(), 0);
    EXPECT_GT(one["curve"].size(), 1U);
  }
  // Before training the measured rewards are the base's; a run's own scale does not enter.
  EXPECT_NEAR(all["runs"][4]["curve"][0][2].get<double>(),
              all["runs"][0]["curve"][0][2].get<double>(), 1e-5);
}

TEST(program_compare, BudgetsFiguresAndWhatIsKept) {
  const TempDir dir;
  const std::string at = dir.path().string();
  write_file_atomic(dir / "task.toml", read_file(source_dir() / "recipes/methods-mixture.toml"));
  write_file_atomic(dir / "two.toml", kTwoMethods);
  const std::string ask = cat("compare ", at, "/two.toml --out ", at, "/out");
  const Outcome plan = run(ask + " --dry-run");
  EXPECT_EQ(std::count(plan.out.begin(), plan.out.end(), '\n'), 8) << plan.out << plan.err;
  const Outcome first = run(ask);
  ASSERT_EQ(first.code, 0) << first.err;
  expect_figures(dir / "out");
  EXPECT_NE(read_file(dir / "out/compare.html").find("two &lt;methods&gt;"), std::string::npos);
  EXPECT_NE(first.out.find("| variance of logs | "), std::string::npos) << first.out;
  // Again: nothing is trained; another measurement: measured again.
  const Outcome again = run(ask);
  EXPECT_EQ(again.err.find("finetune 1/"), std::string::npos) << again.err;
  for (const auto& one : nlohmann::json::parse(read_file(dir / "out/compare.json"))["runs"]) {
    EXPECT_EQ(one["status"], "there already");
  }
  run(ask + " --set samples=300");
  EXPECT_EQ(nlohmann::json::parse(read_file(dir / "out/compare.json"))["runs"][0]["status"],
            "done");
  // The level of time-to-reward is a key; keys of all runs can be given, and are checked before
  // anything begins.
  EXPECT_NE(run(ask + " --set reach=0.1").out.substr(0, 900),
            run(ask + " --set reach=1").out.substr(0, 900));
  expect_message(run(ask + " --dry-run --set-run train.step=3"), 3, "did you mean");
  // Equal time, in folders of their own; the number of steps stays what it was when the run began.
  const std::string timed =
      ask + " --set evaluations=0 --set seconds=0.5 --set seeds=[0] --set scales=[1]";
  ASSERT_EQ(run(timed).code, 0);
  EXPECT_TRUE(std::filesystem::exists(dir / "out/timed/draft_x1_seed0/model.safetensors"));
  run(timed);
  EXPECT_EQ(nlohmann::json::parse(read_file(dir / "out/compare.json"))["runs"][0]["status"],
            "there already");
  EXPECT_FALSE(std::filesystem::exists(dir / "out/timed/draft_x1_seed0.probe"));
}

TEST(program_compare, SaysWhatIsWrongBeforeItBegins) {
  const TempDir dir;
  const std::string at = dir.path().string();
  const auto refused = [&](const std::string& text, const std::string& why) {
    write_file_atomic(dir / "r.toml", text);
    expect_message(run(cat("compare ", at, "/r.toml --out ", at, "/out")), 3, why);
    EXPECT_FALSE(std::filesystem::exists(dir / "out/runs"));
  };
  const std::string head = "config = \"" +
                           (source_dir() / "recipes/methods-mixture.toml").string() +
                           "\"\nsamples = 100\nseeds = [0]\n";
  const std::string draft = "[[run]]\nname = \"a\"\nset = [\"method.name=draft\"]\n";
  refused(head + "evaluations = 1000\n", "compares nothing");
  refused(head + draft, "no budget");
  refused("evaluations = 1000\n" + draft, "config is missing");
  refused(head + "evaluations = 1000\n" + draft + draft, "two runs would be");
  refused(head + "evaluations = 1000\nscales = [0.0]\n" + draft, "not positive");
  refused(head + "evaluations = 1000\n" + draft +
              "[[run]]\nname = \"b\"\nset = [\"method.nam=draft\"]\n",
          "did you mean");
  refused(head + "evaluation = 1000\n" + draft, "did you mean");
  // A budget that pays for no step: recorded, not fatal for the others.
  write_file_atomic(dir / "small.toml", head + "evaluations = 10\n" + draft);
  const Outcome small = run(cat("compare ", at, "/small.toml --out ", at, "/small"));
  EXPECT_EQ(small.code, 1);
  EXPECT_NE(small.out.find("more than the budget"), std::string::npos) << small.out << small.err;
}

}  // namespace
}  // namespace tiltflow::test
