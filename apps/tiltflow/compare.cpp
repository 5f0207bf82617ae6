// tiltflow compare: fine-tuning methods at equal cost, over seeds and reward scales.
#include <algorithm>
#include <iostream>

#include "options.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/log.h"
#include "tiltflow/base/signals.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/eval/method_comparison.h"
#include "verbs.h"

namespace tiltflow::app {
namespace {

struct CompareOptions {
  std::string recipe, out;
  SetOptions changes;
  SetOptions of_runs;
  bool dry_run = false;
  std::vector<Override> run_changes() const {
    std::vector<Override> out = of_runs.overrides();
    for (Override& change : out) change.origin += "-run";
    return out;
  }
};

int run_comparison(const CompareOptions& o) {
  const std::filesystem::path recipe = o.recipe;
  const std::filesystem::path out =
      o.out.empty() ? std::filesystem::path("runs") / recipe.stem() : std::filesystem::path(o.out);
  if (o.dry_run) {
    for (const ComparedRun& run :
         check_comparison(recipe, o.changes.overrides(), o.run_changes())) {
      std::cout << run.folder << "\n";
    }
    log_info("ok");
    return 0;
  }
  const StopKeeper keeper("the same command continues");
  const Comparison c =
      compare_methods(recipe, o.changes.overrides(), o.run_changes(), out,
                      [](std::size_t i, std::size_t count, const ComparedRun& run) {
                        log_info(cat("run ", i + 1, " of ", count, ": ", run.folder));
                      });
  std::cout << read_file(out / "compare.md") << std::flush;
  log_info("page: " + (out / "compare.html").string());
  const bool all_done = std::all_of(c.runs.begin(), c.runs.end(),
                                    [](const ComparedRun& run) { return is_done(run.status); });
  return all_done ? 0 : 1;
}

}  // namespace

void add_compare(CLI::App& program, Action& action) {
  auto* verb = program.add_subcommand("compare",
                                      "fine-tuning methods at equal cost, over seeds and reward "
                                      "scales: one page with trade-offs, tables and samples");
  auto o = std::make_shared<CompareOptions>();
  verb->add_option("recipe", o->recipe,
                   "TOML file: config, seeds, scales, budgets, [[run]] sections")
      ->required();
  add_set_options(*verb, o->changes);  // of the recipe
  verb->add_option("--set-run", o->of_runs.set,
                   "override a key of every run's configuration (repeatable)")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);
  verb->add_option("--unset-run", o->of_runs.unset,
                   "return a key of every run's configuration to its default (repeatable)")
      ->type_name("KEY")
      ->allow_extra_args(false);
  verb->add_option(
      "--out", o->out,
      "folder (default: runs/<recipe>); finished runs in it are kept, unfinished ones continue");
  verb->add_flag("--dry-run", o->dry_run, "check everything, list the runs, start none");
  verb->footer(
      "Examples:\n  tiltflow compare recipes/compare-mixture.toml\n  tiltflow compare "
      "recipes/compare-mnist-ink.toml --set seeds=[0] --set evaluations=1e5 --out runs/look");
  verb->callback([=, &action] { action = [o] { return run_comparison(*o); }; });
}

}  // namespace tiltflow::app
