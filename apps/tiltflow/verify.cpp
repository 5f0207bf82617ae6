// tiltflow verify: the exactness suite.
#include <algorithm>
#include <iostream>

#include "tiltflow/base/log.h"
#include "tiltflow/base/progress.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/tensor/parallel.h"
#include "tiltflow/verify/suite.h"
#include "verbs.h"

namespace tiltflow::app {

void add_verify(CLI::App& program, Action& action) {
  struct Options {
    std::string suite = "quick";
    std::string only;
    bool json = false;
    int workers = 0;
    std::uint64_t seed = 1;
  };
  auto* verb = program.add_subcommand(
      "verify",
      "check the laws against closed forms; broken variants must fail (exit 1 on any surprise)");
  auto o = std::make_shared<Options>();
  verb->add_option("--suite", o->suite,
                   "quick (about a minute), full, or methods (every fine-tuning method on what it "
                   "is known to sample)")
      ->check(CLI::IsMember({"quick", "full", "methods"}))
      ->capture_default_str();
  verb->add_option(
      "--only", o->only,
      "run only the tasks with this text in their name, e.g. \"two modes\" or \"control\"");
  verb->add_option("--seed", o->seed, "seed of all randomness")->capture_default_str();
  verb->add_option("--workers", o->workers, "cores to use; 0 = all")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  verb->add_flag("--json", o->json, "one JSON object on stdout");
  verb->callback([=, &action] {
    action = [o] {
      set_thread_policy({o->workers, 1});
      VerifyOptions options;
      options.full = o->suite == "full";
      options.methods = o->suite == "methods";
      options.seed = o->seed;
      options.only = o->only;
      VerifyReport report;
      {
        std::unique_ptr<Progress> progress;
        options.finished = [&](int done, int total, const std::string& task,
                               const std::vector<VerifyRow>& rows) {
          if (!progress) progress = std::make_unique<Progress>("verify", total);
          const auto good = std::count_if(rows.begin(), rows.end(),
                                          [](const VerifyRow& row) { return row.ok(); });
          if (good < static_cast<std::ptrdiff_t>(rows.size())) {
            log_warn(cat(task, ": ", good, " of ", rows.size(), " rows as they should be\n",
                         table_text(rows)));
          }
          progress->update(done, task);
        };
        report = run_verify(options);
      }
      if (o->json) {
        std::cout << to_json(report).dump() << std::endl;
      } else {
        std::cout << table_text(report) << std::flush;
      }
      return report.passed() ? 0 : 1;
    };
  });
}

}  // namespace tiltflow::app
