// The page, the table and the rows of a sweep.
#include <nlohmann/json.hpp>

#include "tests/report/hand_made_run.h"
#include "tiltflow/eval/sweep_page.h"

namespace tiltflow {
namespace {

namespace fs = std::filesystem;

using test::check_json;
using test::estimate;
using test::holds;
using test::kFinetune;
using test::kMetrics;
using test::make_run;
using test::report_of;

}  // namespace

TEST(eval_sweep_page, SweepsPlotTheirTradeOffs) {
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
