// tiltflow pretrain: trains a base velocity model by flow matching, or the judge, from labelled
// images.
#include "options.h"
#include "plan.h"
#include "tiltflow/base/log.h"
#include "tiltflow/base/signals.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/nn/machine_choices.h"
#include "tiltflow/report/run_report.h"
#include "tiltflow/train/pretraining_run.h"
#include "verbs.h"

namespace tiltflow::app {

void add_pretrain(CLI::App& program, Action& action) {
  auto* verb = program.add_subcommand(
      "pretrain", "train a base model (flow matching) or a judge (classifier) on images");
  auto options = std::make_shared<ConfigOptions>();
  add_config_options(*verb, *options);
  verb->footer(
      "Example:\n  tiltflow pretrain recipes/pretrain-mnist.toml --set data.path=/data/mnist");
  verb->callback([=, &action] {
    action = [options] {
      const StopKeeper keeper("continue with --resume");
      join_processes();
      ResolvedConfig resolved;
      const PretrainConfig config =
          load_config<PretrainConfig>(options->file, options->overrides(), &resolved);
      const std::filesystem::path out =
          options->out.empty()
              ? std::filesystem::path("runs") / std::filesystem::path(options->file).stem()
              : std::filesystem::path(options->out);
      follow_choices(choices_in(out));
      PretrainSetup setup = set_up(config);
      if (options->dry_run) {
        print_plan(
            std::move(setup), out,
            options->start(resolved, pretrain_keys(config.kind), reread_config<PretrainConfig>));
        log_info("ok");
        return 0;
      }
      Run run(out,
              options->start(resolved, pretrain_keys(config.kind), reread_config<PretrainConfig>));
      pretrain(std::move(setup), run);
      if (run.writes()) log_info(cat("wrote ", write_report(out).string()));
      return 0;
    };
  });
}

}  // namespace tiltflow::app
