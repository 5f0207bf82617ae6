// tiltflow finetune: aligns a base model with a reward, as a run directory.
#include "options.h"
#include "plan.h"
#include "tiltflow/base/log.h"
#include "tiltflow/base/signals.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/nn/machine_choices.h"
#include "tiltflow/report/run_report.h"
#include "tiltflow/train/finetuning.h"
#include "tiltflow/train/start_check.h"
#include "verbs.h"

namespace tiltflow::app {
namespace {

// As one word of a shell.
std::string shell_word(const std::string& text) {
  const std::string safe =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-+=./:,@%";
  if (text.find_first_not_of(safe) == std::string::npos) return text;
  std::string out = "'";
  for (const char c : text) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return out + "'";
}

}  // namespace

void add_finetune(CLI::App& program, Action& action) {
  auto* verb = program.add_subcommand("finetune", "align a model with a reward (Adjoint Matching)");
  auto options = std::make_shared<ConfigOptions>();
  add_config_options(*verb, *options);
  verb->footer(
      "Example:\n  tiltflow finetune recipes/mnist-ink.toml --set train.steps=20 --out runs/try");
  verb->callback([=, &action] {
    action = [options] {
      const StopKeeper keeper("continue with --resume");
      join_processes();
      ResolvedConfig resolved;
      const FinetuneConfig config =
          load_config<FinetuneConfig>(options->file, options->overrides(), &resolved);
      const std::filesystem::path out =
          options->out.empty()
              ? std::filesystem::path("runs") / std::filesystem::path(options->file).stem()
              : std::filesystem::path(options->out);
      follow_choices(choices_in(out));
      const FinetuneSetup setup = set_up(config);
      if (options->dry_run) {
        print_plan(setup, out,
                   options->start(resolved, finetune_keys(), reread_config<FinetuneConfig>));
        log_info("ok");
        return 0;
      }
      check_start(setup);
      Run run(out, options->start(resolved, finetune_keys(), reread_config<FinetuneConfig>));
      finetune(setup, run);
      if (!run.writes()) return 0;
      log_info(
          cat("wrote ", (out / "model.safetensors").string(), " and ", write_report(out).string()));
      log_info(
          cat("next: tiltflow eval --run ", shell_word(out.string()), "   (the tilted-law check)"));
      return 0;
    };
  });
}

}  // namespace tiltflow::app
