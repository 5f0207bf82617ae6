// Reports of runs of different kinds and states, made by hand: what stands in them.
#include <algorithm>
#include <nlohmann/json.hpp>

#include "tests/support.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/eval/report.h"
#include "tiltflow/eval/report_curves.h"
#include "tiltflow/eval/report_facts.h"
#include "tiltflow/eval/run_check.h"
#include "tiltflow/eval/sweep_page.h"
#include "tiltflow/io/image.h"

namespace tiltflow {
namespace {

namespace fs = std::filesystem;

bool holds(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

const char* const kFinetune = R"(batch = 64
seed = 3

[[reward]]
name = 'ink'
scale = 18.0

[[reward]]
name = 'class-log-prob'
scale = 0.10000000000000001

[sampler]
name = 'exponential'
steps = 20

    [sampler.inner]
    odd = [ 'a', 'b' ]

[train]
learning_rate = 2.0000000000000002e-05
steps = 40
)";

const char* const kMetrics = R"({"step":0,"base_reward":2.25,"base_reward_se":0.05,"log_z":2.7}
{"step":0,"eval_reward":2.3,"eval_reward_se":0.1,"eval_control_cost":0,"eval_gap":0.4,"eval_gap_se":0.1}
{"step":1,"warning":"control cost explodes","seen":"cost 1e9 <nats>","meaning":"p* is left","change":"lower train.learning_rate"}
{"step":1,"reward":2.2,"loss":0.5,"loss_t0.05":"nan","reward_unscaled_ink":0.12,"odd_number":7,"seconds":2,"evaluations":30}
{"step":2,"reward":2.3,"loss":0.4,"loss_t0.05":0.2,"reward_unscaled_ink":0.13,"odd_number":8,"seconds":2,"evaluations":30}
{"step":2,"eval_reward":2.6,"eval_reward_se":0.1,"eval_control_cost":0.3,"eval_gap":0.2,"eval_gap_se":0.1}
)";

std::string estimate(const std::string& name, double value) {
  return cat("\"", name, "\":{\"value\":", value, ",\"se\":0.05}");
}

std::string check_json(bool passed) {
  const std::string statistic =
      cat("{\"name\":\"reward mean\",", estimate("base", 2), ",", estimate("predicted", 3), ",",
          estimate("tuned", 2.8), ",", estimate("difference", -0.2),
          ",\"tolerance\":0.25,\"agrees\":", passed ? "true" : "false", "}");
  return cat("{\"passed\":", passed ? "true" : "false",
             ",\"samplers\":[{\"sampler\":\"exponential\",\"ess\":50,\"base_samples\":128,\"tuned_"
             "samples\":128,",
             estimate("log_z", 2.7), ",", estimate("control_cost", 0.3), ",", estimate("gap", 0.1),
             ",", estimate("path_gap", 0.1), ",", estimate("shift_reached", 0.8),
             ",\"statistics\":[", statistic,
             "],\"histogram\":{\"of\":\"ink\",\"edges\":[0,0.5,1],\"base\":[1,1],\"predicted\":[0."
             "5,1.5],\"tuned\":[0.6,1.4]}}]}");
}

std::string report_of(const fs::path& run) { return read_file(write_report(run)); }

void make_run(const fs::path& run, const std::string& config, const std::string& metrics) {
  fs::create_directories(run / "samples");
  write_file_atomic(run / "config.toml", config);
  write_file_atomic(run / "metrics.jsonl", metrics);
}

std::string first_chart_titles(const std::vector<Chart>& charts) {
  std::vector<std::string> out;
  for (const Chart& chart : charts) {
    if (has_points(chart)) out.push_back(chart.title);
  }
  return join(out, "|");
}

}  // namespace

TEST(eval_run_check, UnfinishedAndForeignRunsAreNamed) {
  const test::TempDir dir;
  test::expect_error(ErrorKind::kBadFile, "is not a run directory",
                     [&] { load_finished_run(dir.path()); });
  write_file_atomic(dir / "config.toml", kFinetune);
  test::expect_error(ErrorKind::kBadFile, "is not finished: it has no model.safetensors",
                     [&] { load_finished_run(dir.path()); });
}

TEST(eval_run_check, WorkersAndThreadsKeepTheRunsOwnCheck) {
  EXPECT_TRUE(keep_the_numbers({}));
  EXPECT_TRUE(keep_the_numbers({"compute.workers=1", "compute.threads=2"}));
  EXPECT_FALSE(keep_the_numbers({"compute.precision=bf16"}));
  EXPECT_FALSE(keep_the_numbers({"compute.workers=1", "check.base_samples=64"}));
}

TEST(eval_report, AFinishedRunIsToldFromResultToSettings) {
  const test::TempDir dir;
  const fs::path run = dir / "mine & yours";
  make_run(run, kFinetune, kMetrics);
  for (const char* name : {"samples-step-000000", "samples-step-000002", "samples-step-1000000",
                           "base-above-tuned-step-000002", "notes"}) {
    write_png(run / "samples" / cat(name, ".png"),
              at::full({1, 8, 8}, holds(name, "1000000") ? 1.0 : 0.25));
  }
  write_file_atomic(run / "check.json", check_json(false));
  const std::string page = report_of(run);
  EXPECT_TRUE(holds(page, "<title>tiltflow: mine &amp; yours</title>"));
  EXPECT_TRUE(holds(page,
                    "Fails the tilted-law check: 1 of 1 statistics differ from p*. Of the shift of "
                    "the mean reward from base to p* the tuned model reaches "
                    "80\u00a0±\u00a05\u00a0% (sampler exponential)."))
      << page.substr(0, 9000);
  EXPECT_TRUE(holds(page, "<dd>ink, scale 18; class-log-prob, scale 0.1</dd>"));
  EXPECT_TRUE(holds(page, "<dd>exponential, 20 steps</dd>"));
  EXPECT_TRUE(holds(page, "<dd>2e-05</dd>"));
  EXPECT_TRUE(holds(page,
                    "<b>control cost explodes</b>. cost 1e9 &lt;nats&gt;. p* is left. lower "
                    "train.learning_rate"));
  EXPECT_TRUE(holds(page, "Before: the base model") &&
              holds(page, "After: the tuned model at step 1000000"))
      << "the newest of all, whatever its digits";
  EXPECT_FALSE(holds(page, "notes"));
  EXPECT_TRUE(holds(page, "Pictures show samples without the noise"));
  EXPECT_TRUE(holds(page, "<td>0.25</td><td><span class=\"bad\">no</span></td>")) << "tolerance";
  EXPECT_TRUE(holds(page, "Density of ink under exponential"));
  EXPECT_TRUE(holds(page, "Everything else that was logged") && holds(page, "odd number"));
  EXPECT_EQ(read_image(run / "before-after.png").size(2), 8 + 24 + 8);
  write_file_atomic(run / "check.json", check_json(true));
  EXPECT_TRUE(holds(report_of(run),
                    "verdict ok\">Passes the tilted-law check: all 1 statistics agree with p*."));
}

TEST(eval_report, RunsInProgressAndOfOtherKindsAreMadeOfWhatIsThere) {
  const test::TempDir dir;
  make_run(dir / "going", kFinetune, kMetrics);
  EXPECT_TRUE(holds(report_of(dir / "going"),
                    "After 2 of 40 steps: mean reward 2.60 ± 0.10, base 2.250 ± 0.050. The law has "
                    "not been checked"));
  make_run(dir / "begun", kFinetune, "");
  const std::string begun = report_of(dir / "begun");
  EXPECT_TRUE(holds(begun, "Nothing logged yet"));
  EXPECT_FALSE(holds(begun, "<svg") || holds(begun, "id=\"warnings\""));
  make_run(dir / "pretrain", "batch = 4\n[data]\npath = 'digits'\n[train]\nsteps = 2\n",
           "{\"step\":1,\"loss\":0.5,\"learning_rate\":1e-4}\n{\"step\":2,\"loss\":0.4,"
           "\"validation_loss\":0.45,\"class_3_share\":0.1}\n");
  write_png(dir / "pretrain/samples/samples-step-000002.png", at::rand({1, 8, 8}));
  const std::string page = report_of(dir / "pretrain");
  EXPECT_TRUE(holds(page, "After 2 of 2 steps: validation loss 0.45."));
  EXPECT_TRUE(holds(page, "<dd>digits</dd>") && holds(page, "Samples at step 2") &&
              holds(page, "class 3 share"));
  EXPECT_FALSE(holds(page, "base model") || holds(page, "Before"));
}

TEST(eval_report, WhatIsNoRunOrBrokenIsSaid) {
  const test::TempDir dir;
  fs::create_directories(dir / "empty");
  test::expect_error(ErrorKind::kBadFile, "is not a run directory",
                     [&] { write_report(dir / "empty"); });
  make_run(dir / "run", kFinetune, kMetrics);
  for (const char* broken : {"{", "{\"passed\":true}", "{\"passed\":true,\"samplers\":[{}]}"}) {
    write_file_atomic(dir / "run/check.json", broken);
    test::expect_error(ErrorKind::kBadFile, "check.json is broken",
                       [&] { write_report(dir / "run"); });
    EXPECT_FALSE(fs::exists(dir / "run/report.html"));
  }
}

TEST(eval_report, CurvesCarryErrorsUnitsAndCompanions) {
  std::vector<nlohmann::ordered_json> lines;
  for (const std::string& line : split(kMetrics, '\n')) {
    if (!line.empty()) lines.push_back(nlohmann::ordered_json::parse(line));
  }
  const RunCurves curves = curves_of(lines);
  EXPECT_EQ(first_chart_titles(curves.main),
            "Reward|Reward before its scale: ink|Control cost: KL of the tuned paths against the "
            "base's|Gap: log Z − (E r − cost), zero only at the optimum|"
            "Reward against control cost|Loss|Loss by time");
  const Chart& reward = curves.main[0];
  EXPECT_EQ(axis_text(reward.y), "mean reward, scaled (nats)");
  EXPECT_EQ(reward.series[1].error, (std::vector<double>{0.1, 0.1}));
  EXPECT_EQ(reward.series[3].y, (std::vector<double>{2.25, 2.25}))
      << "the base's reward over the whole run";
  EXPECT_EQ(reward.series[3].x, (std::vector<double>{0, 2}));
  const auto against_time =
      std::find_if(curves.cost.begin(), curves.cost.end(),
                   [](const Chart& c) { return c.title == "Reward against time"; });
  ASSERT_NE(against_time, curves.cost.end());
  EXPECT_NEAR(against_time->series[0].x.back(), 4.0 / 60, 1e-12)
      << "seconds of all steps until then, in minutes";
  EXPECT_EQ(first_chart_titles(curves.other), "odd number");
}

TEST(eval_report, SettingsOfADocument) {
  const auto settings = settings_of(kFinetune);
  EXPECT_EQ(settings.at("reward[1].scale"), "0.10000000000000001");
  EXPECT_EQ(settings.at("sampler.inner.odd"), "[ 'a', 'b' ]");
  EXPECT_EQ(settings.at("seed"), "3");
  EXPECT_EQ(facts_html({}), "");
}

TEST(eval_report, SweepsPlotTheirTradeOffs) {
  const test::TempDir dir;
  SweepOptions options;
  options.config = "a <b>.toml";
  options.out = dir.path();
  options.keys = {{"reward[0].scale", {"1", "2"}}};
  std::vector<SweptRun> runs;
  for (const char* scale : {"1", "2"}) {
    SweptRun run;
    run.name = cat("scale-", scale);
    run.values = {{"reward[0].scale", scale}};
    run.status = "done";
    runs.push_back(run);
    make_run(dir / run.name, kFinetune, kMetrics);
  }
  write_file_atomic(dir / "scale-2/check.json", check_json(true));
  write_report(dir / "scale-2");
  runs.push_back({"scale-3", {{"reward[0].scale", "3"}}, 0, 0, "error: out of | memory"});
  write_sweep_page(options, runs);
  const std::string page = read_file(dir / "sweep.html");
  EXPECT_TRUE(holds(page, "Sweep of a &lt;b&gt;.toml") && holds(page, "2 of 3 runs finished"));
  EXPECT_TRUE(holds(page, "<a href=\"scale-2/report.html\">scale-2</a>") &&
              holds(page, "<th scope=\"row\">scale-1</th>"))
      << "links only to what is there";
  EXPECT_TRUE(holds(page, "control cost (nats)</text>") &&
              holds(page, "mean reward, scaled (nats)</text>"));
  const auto rows = nlohmann::json::parse(read_file(dir / "sweep.json"));
  EXPECT_EQ(rows[1]["check"], "passed");
  EXPECT_EQ(rows[0]["reward mean, tuned"], "2.6 +- 0.1");
  EXPECT_TRUE(holds(read_file(dir / "sweep.md"), "| run |") &&
              holds(read_file(dir / "sweep.md"), "error: out of \\| memory"));
}

}  // namespace tiltflow
