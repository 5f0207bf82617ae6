// tiltflow assign, sft, em, align-noise: one-step generators. All read the same configuration.
#include <iostream>
#include <nlohmann/json.hpp>
#include <optional>

#include "options.h"
#include "plan.h"
#include "tiltflow/base/count.h"
#include "tiltflow/base/error.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/folder_claim.h"
#include "tiltflow/base/log.h"
#include "tiltflow/base/progress.h"
#include "tiltflow/base/signals.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/image.h"
#include "tiltflow/io/safetensors.h"
#include "tiltflow/nn/machine_choices.h"
#include "tiltflow/noise/store.h"
#include "tiltflow/report/html.h"
#include "tiltflow/report/table.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/train/onestep.h"
#include "tiltflow/train/run.h"
#include "tiltflow/train/start_check.h"
#include "verbs.h"

namespace tiltflow::app {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

struct OneStepOptions : ConfigOptions {
  std::int64_t shard = 0;
  std::int64_t shards = 1;
  std::string warm;
  bool retry_failed = false;
  bool json = false;
};

struct Loaded {
  OneStepConfig config;
  ResolvedConfig resolved;
  fs::path out;
  ModelRuntime runtime;
};

Loaded load(const OneStepOptions& o, const char* suffix) {
  Loaded l;
  l.config = load_config<OneStepConfig>(o.file, o.overrides(), &l.resolved);
  l.out = o.out.empty() ? fs::path("runs") / (fs::path(o.file).stem().string() + suffix)
                        : fs::path(o.out);
  follow_choices(choices_in(l.out));
  l.runtime = apply(l.config.compute);
  return l;
}

void refuse_existing(bool begun, const fs::path& out, bool resume) {
  if (begun && !resume) {
    fail(ErrorKind::kConfig, cat("the folder ", out.string(), " already holds such a run"),
         "continue it with --resume, or choose another folder with --out");
  }
}

// The last lines of a dry run whose checks have passed.
int finish_plan(const std::string& what, const fs::path& out) {
  require_own_folder(out);
  check_output_folder(out, 0);
  log_info(cat(what, " -> ", out.string()));
  log_info("ok");
  return 0;
}

AssignedSet warm_start(const std::string& file, const Generator& generator) {
  AssignedSet warm = read_assigned(file);
  if (warm.noise.size(1) != noise_size(generator)) {
    fail(ErrorKind::kBadFile, cat(file, ": its noise has ", warm.noise.size(1),
                                  " numbers, the generator takes ", noise_size(generator)));
  }
  return warm;
}

RunStart assignment_start(const OneStepOptions& o, const ResolvedConfig& resolved) {
  RunStart start = o.start(resolved, assign_keys(), reread_config<OneStepConfig>);
  if (o.retry_failed) start.accept_inputs = true;  // the files that failed have been mended
  if (!o.warm.empty()) {                           // a further input of the request
    start.config = cat("warm = '", o.warm, "'\n", start.config);
    start.inputs["warm"] = fingerprint_of(o.warm, PathKind::kAll);
    start.reread = {};
  }
  return start;
}

int finish_assignment(const OneStepOptions& o, const fs::path& out, const AssignSummary& s) {
  if (!s.complete) {
    log_info(cat("shard ", o.shard, " of ", o.shards, " is finished; the last one packs ",
                 (out / "assigned.safetensors").string()));
    return 0;
  }
  log_info(cat(s.assigned, " of ", counted(s.targets, "target"), ": loss ", compact(s.loss), " +- ",
               compact(s.loss_se, 2), " (", compact(s.start_loss), " with the first noise); ",
               counted(s.forwards, "forward"), ", ", counted(s.backwards, "backward"),
               " this time"));
  if (!s.noise.verdict.empty()) std::cerr << to_text(s.noise);
  log_info(
      cat("wrote ",
          s.assigned > 0
              ? "assigned.safetensors, noise.json, pairs.png, manifest.jsonl and summary.json to "
              : "failures.jsonl and summary.json to ",
          out.string()));
  if (o.json) std::cout << read_file(out / "summary.json") << std::flush;
  if (s.failed > 0) {
    fail(ErrorKind::kBadFile,
         cat(counted(s.failed, "target"), " failed; see ", (out / "failures.jsonl").string()),
         "mend them and run the same command with --retry-failed");
  }
  return 0;
}

int assign(const OneStepOptions& o) {
  const Loaded l = load(o, "-assign");
  const OneStepConfig& c = l.config;
  const auto generator = open_generator(c.generator, l.runtime);
  const std::vector<Target> targets = list_targets(c.targets);
  const RandomStreams streams(static_cast<std::uint64_t>(c.seed));
  const Assigner assigner(*generator, c.assign, streams, feature_function(c.features));
  if (o.shard >= o.shards) {
    fail(ErrorKind::kUsage, cat("--shard ", o.shard, " of ", o.shards, ": shards count from 0"));
  }
  if (o.dry_run) {
    print_plan(c);
    return finish_plan(
        cat(counted(static_cast<std::int64_t>(targets.size()), "target"), "; ", c.assign.map, ", ",
            c.assign.restarts, " of ", counted(c.assign.screen, "start"), ", ",
            counted(c.assign.steps, "step")),
        l.out);
  }
  if (o.shards == 1) {
    refuse_existing(has_results(l.out / "store"), l.out, o.resume || o.retry_failed);
  }
  const StopKeeper keeper("continue with --resume");
  AssignRunOptions options;
  std::optional<AssignedSet> warm;
  if (!o.warm.empty()) warm = warm_start(o.warm, *generator);
  if (warm) options.warm = &*warm;
  options.start = assignment_start(o, l.resolved);
  options.out = l.out;
  options.shard = o.shard;
  options.shards = o.shards;
  options.retry_failed = o.retry_failed;
  make_directories(l.out);
  record_choices(choices_in(l.out));
  Progress progress("assign", static_cast<std::int64_t>(targets.size()));
  options.progress = [&](std::int64_t done, double loss) {
    progress.update(done, cat("loss ", compact(loss, 3)));
  };
  const AssignSummary s = run_assignment(*generator, assigner, c.assign, targets, streams, options);
  return finish_assignment(o, l.out, s);
}

int tune(const OneStepOptions& o) {
  const Loaded l = load(o, "-sft");
  const OneStepConfig& c = l.config;
  if (c.sft.assigned.empty()) {
    fail(ErrorKind::kConfig, "sft.assigned is missing",
         "the folder of `tiltflow assign`, e.g. --set sft.assigned=runs/my-assign");
  }
  const std::shared_ptr<const Generator> generator = open_generator(c.generator, l.runtime);
  std::shared_ptr<const Generator> anchor;
  if (!c.sft.anchor_file.empty()) {
    anchor = open_generator_file(c.generator, c.sft.anchor_file, c.generator.section, l.runtime);
  }
  const AssignedSet pairs = read_assigned(c.sft.assigned);
  {
    const SftObjective check(
        generator, generator, pairs, c.sft,
        static_cast<std::uint64_t>(c.seed));  // refuses what does not fit before a folder is made
    if (o.dry_run) {
      print_plan(c);
      return finish_plan(cat(counted(check.training_pairs(), "pair"), ", ",
                             counted(check.trainable().numel(), "trainable number"), ", ",
                             counted(c.train.steps, "step")),
                         l.out);
    }
  }
  const StopKeeper keeper("continue with --resume");
  Run run(l.out, o.start(l.resolved, sft_keys(c.sft.batch_norm), reread_config<OneStepConfig>));
  const SftResult result = sft(generator, anchor, pairs, c, run);
  log_info(cat("wrote ", result.file.string(),
               std::isfinite(result.validation)
                   ? cat("; held-out matched loss ", compact(result.validation))
                   : ""));
  return 0;
}

int em(const OneStepOptions& o) {
  const Loaded l = load(o, "-em");
  if (o.dry_run) {
    print_plan(l.config);
    const auto targets = static_cast<std::int64_t>(list_targets(l.config.targets).size());
    return finish_plan(
        cat(counted(l.config.em.rounds, "round"), " over ", counted(targets, "target")), l.out);
  }
  refuse_existing(has_results(l.out / "round-01/assign/store"), l.out, o.resume);
  const StopKeeper keeper("continue with --resume");
  const std::vector<EmRound> rounds =
      run_em(l.config, l.out, o.start(l.resolved, em_keys(), reread_config<OneStepConfig>));
  TextTable table{{"round", "J after assigning", "J after training", "accepted step"}};
  Series j;
  for (std::size_t i = 0; i < rounds.size(); ++i) {
    table.push_back({cat(i + 1), compact(rounds[i].after_assign, 5),
                     compact(rounds[i].after_train, 5), compact(rounds[i].step)});
    for (const double v : {rounds[i].after_assign, rounds[i].after_train}) {
      j.x.push_back(static_cast<double>(j.x.size()) / 2 + 1);
      j.y.push_back(v);
    }
  }
  std::string pictures;
  for (std::size_t i = 0; i < rounds.size(); ++i) {
    const fs::path file = l.out / cat("round-", i + 1 < 10 ? "0" : "", i + 1) / "assign/pairs.png";
    if (fs::exists(file)) {
      pictures += picture_figure(
          read_file(file),
          cat("Round ", i + 1, ": in pairs, a target and what is made of its noise"));
    }
  }
  const Chart objective{"Objective J", {"round"}, {"mean loss"}, {j}};
  write_file_atomic(
      l.out / "report.html",
      html_page("tiltflow em", cat("<h1>Alternating noise and weights</h1>",
                                   html_table(table, "objective by round"),
                                   chart_figures({objective}), figure_grid(pictures))));
  log_info(cat("wrote ", (l.out / "model.safetensors").string(), ", em.json and report.html"));
  if (o.json) std::cout << read_file(l.out / "em.json") << std::flush;
  return 0;
}

void refuse_unknown_classes(const std::vector<std::int64_t>& labels) {
  for (const std::int64_t label : labels) {
    if (label < 0) {
      fail(ErrorKind::kConfig, cat("align.labels: ", label, " is no class"),
           "leave align.labels empty for all classes in turn");
    }
  }
}

// The turned noise of one label (or of all) as a file, and samples before and after as a picture.
void write_alignment(const fs::path& out, const std::string& name, const AlignResult& r,
                     const Generator& generator) {
  ParameterSet tensors;
  tensors.add("eps", r.eps);
  tensors.add("noise", r.noise);
  tensors.add("maps", r.maps);
  if (r.labels.defined()) tensors.add("label", r.labels);
  write_safetensors(out / (name + ".safetensors"), tensors);
  if (!is_picture(generator.sample_shape())) return;
  const at::NoGradGuard no_grad;
  const at::Tensor both =
      at::stack({generator.generate(r.eps, r.labels), generator.generate(r.noise, r.labels)}, 1)
          .flatten(0, 1);
  write_png(out / (name + "-before-after.png"), image_grid((both + 1) / 2, 16),
            {{"Software", "tiltflow"}});
}

Json alignment_json(const AlignResult& r, std::int64_t label, const RandomStreams& streams) {
  Json json = to_json(r);
  json["label"] = label;
  const at::Tensor turned = r.noise.flatten(1);
  if (turned.size(0) >= 8 && turned.size(1) >= 2) {
    json["noise"] = noise_report(turned, streams).verdict;
  }
  return json;
}

// The section of the report: the reward by step, and the picture where there is one.
std::string alignment_section(const fs::path& out, const std::string& name, const AlignResult& r) {
  Series series{"optimised", {}, r.reward};
  Series watched{"held out", {}, r.held_out};
  for (std::size_t k = 0; k < r.reward.size(); ++k) series.x.push_back(static_cast<double>(k));
  watched.x = series.x;
  std::vector<Series> lines{series};
  if (!r.held_out.empty()) lines.push_back(watched);
  std::string text = cat("<h2>", name, "</h2>",
                         chart_figures({{cat("Mean reward, ", name),
                                         {"optimiser step"},
                                         {"mean reward, scaled", "nats"},
                                         lines}}));
  if (const fs::path file = out / (name + "-before-after.png"); fs::exists(file)) {
    text += figure_grid(picture_figure(
        read_file(file), "In pairs: a sample of the noise before it is turned, and after"));
  }
  return text;
}

void announce_alignment(const std::string& name, const AlignResult& r, double best) {
  const std::string fresh =
      r.has_fresh
          ? cat("; on new noise ", compact(r.fresh_base), " +- ", compact(r.fresh_base_se, 2),
                " -> ", compact(r.fresh_aligned), " +- ", compact(r.fresh_aligned_se, 2))
          : "";
  log_info(cat(name, ": reward ", compact(r.reward.front()), " -> ", compact(best), " at step ",
               r.best_step, fresh));
}

int align(const OneStepOptions& o) {
  const Loaded l = load(o, "-align");
  const OneStepConfig& c = l.config;
  const auto generator = open_generator(c.generator, l.runtime);
  const auto reward = make_weighted_sum(c.reward);
  const auto held_out = c.held_out.empty() ? nullptr : make_weighted_sum(c.held_out);
  if (o.dry_run) {
    print_plan(c);
    return finish_plan(cat("reward ", reward->info().name, ", ", counted(c.align.steps, "step"),
                           " on ", counted(c.align.batch, "sample")),
                       l.out);
  }
  if (fs::exists(l.out / "align.json")) {
    fail(ErrorKind::kConfig, cat("the folder ", l.out.string(), " already holds such a run"),
         "choose another folder with --out");
  }
  const RandomStreams streams(static_cast<std::uint64_t>(c.seed));
  std::vector<std::int64_t> labels = c.align.labels;
  refuse_unknown_classes(labels);
  const FolderClaim claim(l.out);
  if (labels.empty()) labels.push_back(-1);
  Json all = Json::array();
  std::string body = cat("<h1>Noise aligned with ", html_escape(reward->info().name), "</h1>");
  Progress progress("align-noise", static_cast<std::int64_t>(labels.size()));
  for (const std::int64_t label : labels) {
    const AlignResult r = align_noise(*generator, *reward, held_out.get(), c.align, label, streams);
    const std::string name = label < 0 ? "all" : cat("label-", label);
    make_directories(l.out);
    const Json json = alignment_json(r, label, streams);
    write_alignment(l.out, name, r, *generator);
    body += alignment_section(l.out, name, r);
    announce_alignment(name, r, json["best"].get<double>());
    all.push_back(json);
    progress.update(static_cast<std::int64_t>(all.size()));
  }
  write_file_atomic(l.out / "report.html", html_page("tiltflow align-noise", body));
  write_file_atomic(l.out / "inputs.json", inputs_text(fingerprints_of(l.resolved.inputs)));
  write_file_atomic(l.out / "align.json", all.dump(1) + "\n");
  if (o.json) std::cout << all.dump() << std::endl;
  return 0;
}

std::shared_ptr<OneStepOptions> add_verb(CLI::App& program, Action& action, const char* name,
                                         const char* what, const char* example,
                                         int (*work)(const OneStepOptions&), bool resumable = true,
                                         CLI::App** made = nullptr) {
  auto* verb = program.add_subcommand(name, what);
  auto o = std::make_shared<OneStepOptions>();
  add_config_options(*verb, *o);
  if (!resumable) {
    verb->remove_option(verb->get_option("--accept-inputs"));
    verb->remove_option(verb->get_option("--resume"));
  }
  verb->footer(example);
  verb->callback([=, &action] { action = [=] { return work(*o); }; });
  if (made) *made = verb;
  return o;
}

}  // namespace

void add_onestep(CLI::App& program, Action& action) {
  CLI::App* verb = nullptr;
  const auto json = [&](const std::shared_ptr<OneStepOptions>& o) {
    verb->add_flag("--json", o->json, "the result as JSON on stdout");
  };
  auto o = add_verb(program, action, "assign",
                    "find the noise from which a one-step generator makes each target image",
                    "Example:\n  tiltflow assign recipes/onestep-mnist.toml --set "
                    "targets.path=data/mnist --out runs/assign",
                    assign, true, &verb);
  verb->add_option("--shard", o->shard, "this process takes every n-th piece, this one first")
      ->check(CLI::NonNegativeNumber);
  verb->add_option("--shards", o->shards, "n")->check(CLI::PositiveNumber);
  verb->add_option("--warm", o->warm,
                   "continue from the noises of an earlier assignment (folder or file), matched by "
                   "target; none gets worse")
      ->type_name("DIR");
  verb->add_flag("--retry-failed", o->retry_failed, "try the failed targets of this run again");
  json(o);
  add_verb(program, action, "sft", "fine-tune a one-step generator on assigned noise and targets",
           "Example:\n  tiltflow sft recipes/onestep-mnist.toml --set sft.assigned=runs/assign "
           "--out runs/sft",
           tune);
  json(add_verb(program, action, "em",
                "alternate assigning noise and fine-tuning; the objective never rises",
                "Example:\n  tiltflow em recipes/onestep-mnist.toml --set targets.path=data/mnist "
                "--out runs/em",
                em, true, &verb));
  json(add_verb(program, action, "align-noise",
                "turn the noise of a one-step generator until a reward is high",
                "Example:\n  tiltflow align-noise recipes/onestep-mnist.toml --out runs/align",
                align, false, &verb));
}

}  // namespace tiltflow::app
