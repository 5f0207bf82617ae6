// tiltflow sweep: fine-tuning runs over values of configuration keys.
#include <algorithm>
#include <iostream>

#include "options.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/log.h"
#include "tiltflow/base/signals.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/eval/budget.h"
#include "tiltflow/eval/sweep.h"
#include "verbs.h"

namespace tiltflow::app {
namespace {

struct SweepVerbOptions {
  std::string config, out;
  std::vector<std::string> vary;
  SweepOptions sweep;
  SetOptions changes;
  bool no_check = false;
  bool dry_run = false;
  bool quick = false;
};

int run_sweep(SweepVerbOptions& o) {
  SweepOptions& s = o.sweep;
  s.config = o.config;
  s.out = o.out.empty() ? std::filesystem::path("runs") / cat(s.config.stem().string(), "-sweep")
                        : std::filesystem::path(o.out);
  for (const std::string& text : o.vary) s.keys.push_back(parse_swept_key(text));
  s.check = !o.no_check && !o.quick;
  if (o.quick) s.set = {{"train.steps=10", "--quick"}, {"evaluation.every=10", "--quick"}};
  for (const Override& change : o.changes.overrides()) s.set.push_back(change);
  if (o.dry_run) {
    for (const SweptRun& run : check_sweep(s)) std::cout << run.name << "\n";
    log_info("ok");
    return 0;
  }
  const StopKeeper keeper("the same command continues");
  const std::vector<SweptRun> runs = sweep(
      s, [](std::size_t i, const SweptRun& run) { log_info(cat("run ", i + 1, ": ", run.name)); });
  std::cout << read_file(s.out / "sweep.md") << std::flush;
  log_info("page: " + (s.out / "sweep.html").string());
  const bool all_done = std::all_of(runs.begin(), runs.end(),
                                    [](const SweptRun& run) { return is_done(run.status); });
  return all_done ? 0 : 1;
}

}  // namespace

void add_sweep(CLI::App& program, Action& action) {
  auto* verb = program.add_subcommand(
      "sweep",
      "fine-tune over values of configuration keys: one folder a run, one table and one page");
  auto o = std::make_shared<SweepVerbOptions>();
  verb->add_option("config", o->config, "TOML file of `tiltflow finetune`")->required();
  verb->add_option("--vary", o->vary, "a key and its values (repeatable)")
      ->type_name("KEY=V1,V2,...")
      ->allow_extra_args(false)
      ->required();
  verb->add_flag("--together", o->sweep.together,
                 "i-th values of all keys instead of every combination");
  add_set_options(*verb, o->changes);  // of every run
  verb->add_option("--out", o->out,
                   "folder of the runs (default: runs/<config>-sweep); finished runs in it are "
                   "kept, unfinished ones continue");
  verb->add_option("--budget", o->sweep.budget,
                   "network evaluations of a run: train.steps becomes what they pay for (methods "
                   "at equal cost)")
      ->check(CLI::PositiveNumber);
  verb->add_flag("--no-check", o->no_check, "skip the tilted-law check after every run");
  verb->add_flag("--quick", o->quick,
                 "a look in a minute: 10 steps a run unless said otherwise, no check");
  verb->add_flag("--dry-run", o->dry_run, "check everything, list the runs, start none");
  verb->footer(
      "Example:\n  tiltflow sweep recipes/mnist-ink.toml --vary reward[0].scale=4,8,12,16 --out "
      "runs/lambda\n  tiltflow sweep recipes/methods-mnist-ink.toml --vary "
      "method.name=adjoint-matching,log-variance,draft --vary reward[0].scale=6,12 --budget "
      "400000");
  verb->callback([=, &action] { action = [o] { return run_sweep(*o); }; });
}

}  // namespace tiltflow::app
