// tiltflow verify: the exactness suite.
#include <iostream>

#include "tiltflow/base/progress.h"
#include "tiltflow/eval/verify/suite.h"
#include "tiltflow/tensor/parallel.h"
#include "verbs.h"

namespace tiltflow::app {

void add_verify(CLI::App& program, Action& action) {
  struct Options {
    std::string suite = "quick";
    bool json = false;
    int workers = 0;
    std::uint64_t seed = 1;
  };
  auto* verb = program.add_subcommand("verify", "check the laws against closed forms; broken variants must fail (exit 1 on any surprise)");
  auto o = std::make_shared<Options>();
  verb->add_option("--suite", o->suite, "quick (about a minute) or full")->check(CLI::IsMember({"quick", "full"}))->capture_default_str();
  verb->add_option("--seed", o->seed, "seed of all randomness")->capture_default_str();
  verb->add_option("--workers", o->workers, "cores to use; 0 = all")->capture_default_str()->check(CLI::NonNegativeNumber);
  verb->add_flag("--json", o->json, "one JSON object on stdout");
  verb->callback([=, &action] {
    action = [o] {
      set_thread_policy({o->workers, 1});
      VerifyOptions options;
      options.full = o->suite == "full", options.seed = o->seed;
      VerifyReport report;
      {
        std::unique_ptr<Progress> progress;
        options.progress = [&](int done, int total) {
          if (!progress) progress = std::make_unique<Progress>("verify", total);
          progress->update(done);
        };
        report = run_verify(options);
      }
      if (o->json) std::cout << to_json(report).dump() << std::endl;
      else std::cout << table_text(report) << std::flush;
      return report.passed() ? 0 : 1;
    };
  });
}

}  // namespace tiltflow::app
