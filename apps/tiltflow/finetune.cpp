// tiltflow finetune: aligns a base model with a reward, as a run directory.
#include "tiltflow/base/log.h"
#include "tiltflow/base/signals.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/eval/report.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/tensor/parallel.h"
#include "tiltflow/train/finetuning.h"
#include "options.h"
#include "verbs.h"

namespace tiltflow::app {
namespace {

void print_plan(const FinetuneSetup& s, const std::filesystem::path& out) {
  const Policy policy = make_policy(s.flow, s.config.policy, 0);
  const double weights = s.flow.model->parameters().bytes(), trained = policy.trainable.bytes();
  log_info(cat("model ", s.config.model.file, ": ", s.flow.model->spec().family, ", ", s.flow.model->parameters().numel(), " parameters (", format_bytes(weights), "), samples ", shape_text(s.flow.model->sample_shape())));
  log_info(cat("policy ", s.config.policy.kind, ": ", policy.trainable.numel(), " trainable; weights, gradients, AdamW and average about ", format_bytes(weights + 5 * trained)));
  log_info(cat("reward ", s.reward->reward().info().name, "; labels ", s.config.labels.kind));
  log_info(cat("sampler ", s.table.name, " on the ", s.flow.path->name(), " path, ", s.table.size(), " steps; method ", s.config.method.name, ", ", compact(make_method(s.config.method)->training_calls(s.table)), " evaluations with a graph per sample and step"));
  log_info(cat(s.config.train.steps, " steps of ", s.config.batch, " trajectories -> ", out.string()));
}

}  // namespace

void add_finetune(CLI::App& program, Action& action) {
  auto* verb = program.add_subcommand("finetune", "align a model with a reward (Adjoint Matching)");
  auto options = std::make_shared<ConfigOptions>();
  add_config_options(*verb, *options);
  verb->footer("Example:\n  tiltflow finetune recipes/mnist-ink.toml --set train.steps=20 --out runs/try");
  verb->callback([=, &action] {
    action = [options] {
      const StopKeeper keeper("continue with --resume");
      join_processes();
      std::string resolved;
      const FinetuneConfig config = load_config<FinetuneConfig>(options->file, options->set, &resolved);
      const FinetuneSetup setup = set_up(config);
      const std::filesystem::path out = options->out.empty() ? std::filesystem::path("runs") / std::filesystem::path(options->file).stem() : std::filesystem::path(options->out);
      if (options->dry_run) {
        print_plan(setup, out);
        return 0;
      }
      Run run(out, resolved, options->resume);
      finetune(setup, run);
      if (!run.writes()) return 0;
      log_info(cat("wrote ", (out / "model.safetensors").string(), " and ", write_report(out).string()));
      log_info(cat("next: tiltflow eval --run ", out.string(), "   (the tilted-law check)"));
      return 0;
    };
  });
}

}  // namespace tiltflow::app
