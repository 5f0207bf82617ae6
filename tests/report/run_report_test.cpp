// Reports of runs of different kinds and states, made by hand: what stands in them.
#include <nlohmann/json.hpp>

#include "tests/report/hand_made_run.h"
#include "tiltflow/io/image.h"
#include "tiltflow/report/run_facts.h"
#include "tiltflow/report/run_report.h"

namespace tiltflow {
namespace {

namespace fs = std::filesystem;

using test::check_json;
using test::holds;
using test::kFinetune;
using test::kMetrics;
using test::make_run;
using test::report_of;

}  // namespace

TEST(report_run_report, AFinishedRunIsToldFromResultToSettings) {
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

TEST(report_run_report, RunsInProgressAndOfOtherKindsAreMadeOfWhatIsThere) {
  const test::TempDir dir;
  make_run(dir / "going", kFinetune, kMetrics);
  EXPECT_TRUE(holds(report_of(dir / "going"),
                    "After 2 of 40 steps: mean reward 2.60 ± 0.10, base 2.250 ± 0.050. "
                    "The law has not been checked"));
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

TEST(report_run_report, WhatIsNoRunOrBrokenIsSaid) {
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

TEST(report_run_report, SettingsOfADocument) {
  const auto settings = settings_of(kFinetune);
  EXPECT_EQ(settings.at("reward[1].scale"), "0.10000000000000001");
  EXPECT_EQ(settings.at("sampler.inner.odd"), "[ 'a', 'b' ]");
  EXPECT_EQ(settings.at("seed"), "3");
  EXPECT_EQ(facts_html({}), "");
}

}  // namespace tiltflow
