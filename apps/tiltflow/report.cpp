// tiltflow report: makes a run's report.html again.
#include "tiltflow/report/run_report.h"

#include "tiltflow/base/log.h"
#include "verbs.h"

namespace tiltflow::app {

void add_report(CLI::App& program, Action& action) {
  auto* verb = program.add_subcommand(
      "report", "write report.html of a run, finished or not: result, pictures, check, curves");
  auto run = std::make_shared<std::string>();
  verb->add_option("run,--run", *run, "run directory")->required();
  verb->footer("Example:\n  tiltflow report runs/demo");
  verb->callback([=, &action] {
    action = [run] {
      log_info("wrote " + write_report(*run).string());
      return 0;
    };
  });
}

}  // namespace tiltflow::app
