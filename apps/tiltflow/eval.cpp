// tiltflow eval: the tilted-law check of a run, or the quality of a base model (accuracy and
// Frechet distance by a judge).
#include <algorithm>
#include <iostream>

#include "options.h"
#include "tiltflow/base/error.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/log.h"
#include "tiltflow/base/progress.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/eval/comparison.h"
#include "tiltflow/eval/run_check.h"
#include "tiltflow/io/dataset.h"
#include "tiltflow/io/safetensors.h"
#include "tiltflow/sampler/fields.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/tensor/parallel.h"
#include "verbs.h"

namespace tiltflow::app {
namespace {

struct EvalOptions : SetOptions {
  std::vector<std::string> runs;
  std::string judge;
  std::string reference;
  std::string make_reference;
  std::string out;
  DatasetConfig data;
  ModelOptions model;
  SamplerConfig sampler;
  Guidance guidance;
  ComputeConfig compute;
  AutoencoderConfig decoder;
  std::string features;
  std::int64_t n = 2000;
  std::int64_t seed = 0;
  std::int64_t seeds = 2;
  bool table = false;
  bool json = false;
};

// Options of the command line that stand for keys of a run's configuration.
struct KeyOption {
  const char *option, *key;
  bool text = false;  // the value is quoted
};

const std::vector<KeyOption>& key_options() {
  static const std::vector<KeyOption> options{
      {"--judge", "check.judge", true},
      {"--decoder", "decoder.file", true},
      {"--guidance", "guidance.scale"},
      {"--guidance-channels", "guidance.channels"},
      {"--guidance-begin", "guidance.begin"},
      {"--guidance-end", "guidance.end"},
      {"--sampler", "sampler.name", true},
      {"--steps", "sampler.steps"},
      {"--grid", "sampler.grid", true},
      {"--shift", "sampler.shift"},
      {"--eta", "sampler.parameter"},
      {"--rtol", "sampler.rtol"},
      {"--atol", "sampler.atol"},
      {"--epsilon", "sampler.epsilon"},
      {"--diffusion", "sampler.diffusion", true},
      {"--diffusion-norm", "sampler.diffusion_norm"},
      {"--last-step", "sampler.last_step", true},
      {"--last-step-size", "sampler.last_step_size"},
      {"--device", "compute.device", true},
      {"--precision", "compute.precision", true},
      {"--kernels", "compute.kernels", true},
      {"--activation-checkpointing", "compute.activation_checkpointing"},
      {"--graphs", "compute.graphs"},
      {"--workers", "compute.workers"},
      {"--threads", "compute.threads"},
      {"--seed", "seed"}};
  return options;
}

// What the command line changes in the configurations of runs, options and --set alike. `own`:
// options that mean something else here.
std::vector<Override> changes_of_runs(const CLI::App& verb, const EvalOptions& o,
                                      const std::vector<std::string>& own) {
  std::vector<Override> out;
  for (const KeyOption& k : key_options()) {
    const CLI::Option& option = *verb.get_option(k.option);
    if (option.count() == 0 || std::find(own.begin(), own.end(), k.option) != own.end()) continue;
    const std::string value = option.results().back();
    out.emplace_back(cat(k.key, "=", k.text ? cat("\"", value, "\"") : value), k.option);
  }
  for (const Override& change : o.overrides()) out.push_back(change);
  return out;
}

// Says in what the evaluation differs from the run.
nlohmann::ordered_json announce(const std::filesystem::path& run,
                                const std::vector<Override>& changes) {
  nlohmann::ordered_json out = nlohmann::ordered_json::array();
  if (changes.empty()) return out;
  for (const std::string& text : changed_keys(run, changes)) {
    log_info(cat(run.string(), ", other than in the run: ", text));
    out.push_back(text);
  }
  return out;
}

int check(const EvalOptions& o, std::vector<Override> changes, bool has_n) {
  const std::filesystem::path folder = o.runs.front();
  require_finished_run(folder);
  if (has_n) {
    for (const char* key : {"check.base_samples", "check.tuned_samples"}) {
      changes.emplace_back(cat(key, "=", o.n), "--n");
    }
  }
  const std::string mode =
      load_config<FinetuneConfig>(folder / "config.toml", changes).guidance.mode;
  const bool has_guidance = std::any_of(changes.begin(), changes.end(), [](const Override& change) {
    return starts_with(change.origin, "--guidance");
  });
  if (has_guidance && mode != "full") {
    fail(
        ErrorKind::kUsage,
        cat("--guidance: the run tilts the unguided law (guidance.mode = \"", mode, "\")"),
        "--set guidance.mode=full checks the guided law; --table shows pictures with any guidance");
  }
  const nlohmann::ordered_json said = announce(folder, changes);
  const TiltedCheck result = check_run(folder, changes);
  nlohmann::ordered_json json = to_json(result);
  if (!said.empty()) json["other_than_in_the_run"] = said;
  if (o.json) {
    std::cout << json.dump() << std::endl;
  } else {
    std::cerr << table_text(result);
  }
  if (!keep_the_numbers(changes)) {
    log_info("the run's check.json and report.html are left as they are");
  } else {
    log_info("report: " + (folder / "report.html").string());
  }
  return result.passed ? 0 : 1;
}

int compare(const EvalOptions& o, const std::vector<Override>& changes, bool has_guidance) {
  ComparisonOptions options;
  options.changes = changes;
  if (has_guidance) options.guidance = o.guidance.scale;
  nlohmann::ordered_json said;
  for (const std::string& run : o.runs) require_finished_run(run);
  for (const std::string& run : o.runs) said[run] = announce(run, changes);
  options.n = o.n;
  options.seeds = o.seeds;
  options.data = o.data;
  options.reference = o.reference;
  options.make_reference = o.make_reference;
  if (!o.features.empty()) options.features = o.features;
  if (o.data.path.empty()) {
    log_warn(o.reference.empty()
                 ? "no real pictures: Frechet distance, precision and recall are left out; --data "
                   "FOLDER gives all three, --reference FILE the first"
                 : "precision and recall are left out: they need real pictures (--data FOLDER), "
                   "not statistics");
  }
  std::unique_ptr<Progress> progress;
  options.progress = [&](std::int64_t done, std::int64_t total) {
    if (!progress) progress = std::make_unique<Progress>("compare", total);
    progress->update(done);
  };
  const ModelComparison result = compare_models({o.runs.begin(), o.runs.end()}, options);
  progress.reset();
  const std::filesystem::path folder = o.out.empty() ? o.runs.front() : o.out;
  make_directories(folder);
  nlohmann::ordered_json json = to_json(result);
  if (!changes.empty()) json["other_than_in_the_runs"] = said;
  write_file_atomic(folder / "comparison.json", json.dump(1) + "\n");
  write_file_atomic(folder / "comparison.csv", to_csv(result));
  write_file_atomic(folder / "comparison.html", to_html(result));
  if (o.json) {
    std::cout << json.dump() << std::endl;
  } else {
    std::cout << table_text(result) << std::flush;
  }
  log_info(cat("wrote comparison.json, .csv and .html to ", folder.string()));
  return 0;
}

void warn_if_singular(std::int64_t pictures, std::int64_t features, const std::string& what) {
  const std::string note = singular_note(pictures, features, what);
  if (!note.empty()) log_warn(note);
}

FeatureMoments reference_moments(const EvalOptions& o, const FeatureNetwork& network) {
  if (!o.reference.empty()) return read_moments(o.reference);
  const ImageDataset held_out = read_dataset(o.data, "test");
  require_two_pictures(held_out.size(), o.data.path);
  const at::Tensor features =
      features_of(network, at::arange(held_out.size()),
                  [&](const at::Tensor& indices) { return held_out.batch(indices); });
  warn_if_singular(held_out.size(), features.size(1), o.data.path);
  const FeatureMoments moments = feature_moments(features);
  if (!o.make_reference.empty()) {
    write_moments(o.make_reference, moments, network.name);
    log_info("wrote " + o.make_reference);
  }
  return moments;
}

void require_features(const EvalOptions& o) {
  if (o.judge.empty() && o.features.empty()) {
    fail(ErrorKind::kUsage,
         "eval --model needs --judge FILE (accuracy, features) or --features NETWORK");
  }
  if (o.reference.empty() && o.data.path.empty()) {
    const std::string network =
        o.features.empty() ? cat("--judge ", o.judge) : cat("--features ", o.features);
    fail(ErrorKind::kUsage,
         cat("the Frechet distance of ", network,
             " has no reference: give --reference FILE (statistics of these features) or --data "
             "FOLDER (held-out images)"),
         "--make-reference FILE beside --data writes such statistics");
  }
}

// What the samples of a model are judged by.
struct Judges {
  std::shared_ptr<const Classifier> classifier;  // null without --judge
  FeatureNetwork network;
  FeatureMoments reference;
};

// Class accuracy (conditional samples only) and Frechet distances of `draws`, added to `out`.
void judge_draws(const Draws& draws, bool conditional, const Judges& judges, const Decoder& decode,
                 const RandomStreams& streams, nlohmann::ordered_json& out) {
  const auto& classifier = judges.classifier;
  const std::int64_t classes = classifier ? classifier->config().num_classes : 0;
  // One pass over the decoded pictures: features, and the judge's classes behind them.
  const FeatureNetwork seen{
      judges.network.name, [&](const at::Tensor& images) {
        return classifier
                   ? at::cat({judges.network.features(images), classifier->logits(images)}, 1)
                   : judges.network.features(images);
      }};
  const at::Tensor both = features_of(seen, draws.x, decode);
  const at::Tensor features = both.narrow(1, 0, both.size(1) - classes);
  const std::string kind = conditional ? "conditional" : "unconditional";
  if (conditional && classifier) {
    const at::Tensor seen_classes = both.narrow(1, features.size(1), classes).argmax(1);
    const Estimate hits = mean_estimate((seen_classes == draws.labels).to(at::kDouble));
    out["class_accuracy"] = hits.value;
    out["class_accuracy_se"] = hits.se;
  }
  out["frechet_" + kind] = frechet_distance(feature_moments(features), judges.reference);
  if (draws.x.size(0) >= 100) {
    const Estimate unbiased = frechet_extrapolated(features, judges.reference, streams);
    out["frechet_" + kind + "_extrapolated"] = unbiased.value;
    out["frechet_" + kind + "_extrapolated_se"] = unbiased.se;
  }
}

// What was evaluated and against what.
nlohmann::ordered_json evaluation_of(const EvalOptions& o, const SamplerConfig& sampler,
                                     const FeatureNetwork& network) {
  const std::string data =
      cat(has_test_split(o.data) ? "test split of " : "pictures of ", o.data.path);
  return {{"model", o.model.model.file},
          {"sampler", sampler.name},
          {"steps", sampler.steps},
          {"samples", o.n},
          {"guidance", o.guidance.scale},
          {"features", network.name},
          {"reference", o.reference.empty() ? data : o.reference}};
}

int evaluate_model(const EvalOptions& o) {
  require_features(o);
  const FlowModel flow = o.model.load(apply(o.compute));
  const auto& model = flow.model;
  Judges judges;
  if (!o.judge.empty()) judges.classifier = load_classifier(o.judge);
  judges.network = make_feature_network(o.features.empty() ? o.judge : o.features);
  const Decoder decode =
      decoder_of(flow, o.decoder.file.empty() ? nullptr : load_autoencoder(o.decoder));
  judges.reference = reference_moments(o, judges.network);
  SamplerConfig sampler = o.sampler;
  sampler.prediction = flow.prediction;
  const RandomStreams streams(static_cast<std::uint64_t>(o.seed));
  require_same_features(judges.network, judges.reference, model->sample_shape(), decode);
  nlohmann::ordered_json out = evaluation_of(o, sampler, judges.network);
  for (const bool conditional : {true, false}) {
    if (conditional && model->classes() == 0) continue;
    Progress progress(conditional ? "conditional" : "unconditional", o.n);
    DrawOptions options;
    options.n = o.n;
    options.progress = [&](std::int64_t done) { progress.update(done); };
    const auto field = conditional ? guided(model, o.guidance, model->classes()) : model;
    const Draws draws =
        draw(*field, sampler, *flow.path, model->sample_shape(), streams,
             conditional ? uniform_labels(streams, 0, model->classes()) : no_labels(), options);
    judge_draws(draws, conditional, judges, decode, streams, out);
  }
  // What a perfect model would show: the distance is biased upwards by about tr(S)/N.
  out["frechet_floor"] =
      judges.reference.covariance.trace().item<double>() / static_cast<double>(o.n);
  std::cout << out.dump(o.json ? -1 : 1) << std::endl;
  return 0;
}

int check_or_compare(const CLI::App& verb, const EvalOptions& o) {
  if (o.runs.size() > 1 && !o.table) {
    fail(ErrorKind::kUsage, "several runs are compared with --table");
  }
  std::vector<std::string> known{"--run", "--json", "--set", "--unset", "--n"};
  for (const KeyOption& k : key_options()) known.emplace_back(k.option);
  if (!o.table) {
    refuse_other_options(
        verb, known,
        "on the check of a run: it follows the run's configuration, which --set changes");
    return check(o, changes_of_runs(verb, o, {}), verb.count("--n") > 0);
  }
  if (verb.count("--judge") > 0) {
    fail(ErrorKind::kUsage, "--judge has no effect on --table",
         "--features takes a classifier file");
  }
  for (const char* name :
       {"--table", "--seeds", "--features", "--data", "--format", "--size", "--channels", "--alpha",
        "--skip-bad", "--reference", "--make-reference", "--out"}) {
    known.emplace_back(name);
  }
  refuse_other_options(verb, known, "on --table");
  return compare(o, changes_of_runs(verb, o, {"--guidance"}), verb.count("--guidance") > 0);
}

int evaluate(const CLI::App& verb, const EvalOptions& o) {
  if (o.runs.empty() == o.model.model.file.empty()) {
    fail(ErrorKind::kUsage, "eval needs --run DIR or --model FILE");
  }
  if (!o.runs.empty()) return check_or_compare(verb, o);
  if (verb.count("--seeds") + verb.count("--out") > 0) {
    fail(ErrorKind::kUsage, "--seeds and --out belong to --run DIR --table");
  }
  return evaluate_model(o);
}

// Options of `--table`.
void add_table_options(CLI::App& verb, EvalOptions& o, CLI::Option* run) {
  verb.add_flag("--table", o.table,
                "with --run: base against tuned, SDE and ODE, with the run's guidance and with "
                "--guidance: rewards, diversity, Frechet distance, precision, recall")
      ->needs(run);
  verb.add_option("--features", o.features,
                  "pixels, a classifier file or a CLIP image tower (default: pixels with --table, "
                  "else the judge)");
  verb.add_option("--seeds", o.seeds, "of --table: seeds with --n samples each")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  verb.add_option(
      "--out", o.out,
      "of --table: folder for comparison.json, .csv and .html (default: the first run)");
}

// Real pictures, or statistics of them.
void add_reference_options(CLI::App& verb, EvalOptions& o) {
  auto* data = add_data_options(
      verb, o.data,
      "real, held-out images: the test split, or all pictures of a folder that is not divided");
  auto* reference = verb.add_option(
      "--reference", o.reference,
      "feature statistics instead of --data: a file of --make-reference, or npz with mu and sigma");
  verb.add_option("--make-reference", o.make_reference,
                  "write the statistics of --data to this file (.npz or safetensors)")
      ->needs(data)
      ->excludes(reference);
}

}  // namespace

void add_eval(CLI::App& program, Action& action) {
  auto* verb = program.add_subcommand("eval",
                                      "tilted-law check of a run (--run), runs in a table (--run "
                                      "--table), or quality of a model (--model)");
  auto o = std::make_shared<EvalOptions>();
  auto* run = verb->add_option("run,--run", o->runs,
                               "run directory of `tiltflow finetune`; exit 1 when the check fails; "
                               "repeatable with --table")
                  ->allow_extra_args(false);
  o->sampler.steps = 40;
  add_model_options(*verb, o->model)->excludes(run);
  verb->add_option("--judge", o->judge,
                   "classifier file: class accuracy, and features unless --features says "
                   "otherwise; with --run in place of check.judge");
  verb->add_option("--decoder", o->decoder.file,
                   "autoencoder of a latent model (folder or file in the names of diffusers)");
  add_reference_options(*verb, *o);
  verb->add_option("--n", o->n, "samples")
      ->capture_default_str()
      ->check(CLI::Range(16, 10'000'000));
  add_sampler_options(*verb, o->sampler);
  add_guidance_options(*verb, o->guidance);
  add_compute_options(*verb, o->compute);
  verb->add_option("--seed", o->seed, "seed")->capture_default_str()->check(CLI::NonNegativeNumber);
  add_table_options(*verb, *o, run);
  verb->add_flag("--json", o->json, "one JSON object on stdout");
  add_set_options(*verb, *o);
  for (const char* name : {"--set", "--unset"}) verb->get_option(name)->needs(run);
  verb->footer(
      "Examples:\n  tiltflow eval --run runs/demo --table --data data/mnist\n  tiltflow eval "
      "--model assets/mnist-sit.safetensors --judge assets/mnist-judge.safetensors --data "
      "data/mnist");
  verb->callback([=, &action] { action = [o, verb] { return evaluate(*verb, *o); }; });
}

}  // namespace tiltflow::app
