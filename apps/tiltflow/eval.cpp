// tiltflow eval: the tilted-law check of a run, or the quality of a base model (accuracy and Frechet distance by a judge).
#include <iostream>

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
#include "options.h"
#include "verbs.h"

namespace tiltflow::app {
namespace {

struct EvalOptions {
  std::string run, judge, reference, data, format = "idx", make_reference;
  ModelOptions model;
  SamplerConfig sampler;
  Guidance guidance;
  ComputeConfig compute;
  std::string features = "pixels";
  std::int64_t n = 2000, seed = 0, seeds = 2;
  bool table = false;
  bool json = false;
};

int check(const EvalOptions& o) {
  const std::filesystem::path folder = o.run;
  const TiltedCheck result = check_run(folder);
  if (o.json) std::cout << to_json(result).dump() << std::endl;
  else std::cerr << table_text(result);
  log_info("report: " + (folder / "report.html").string());
  return result.passed ? 0 : 1;
}

int compare(const EvalOptions& o) {
  ComparisonOptions options;
  options.n = o.n, options.seeds = o.seeds, options.guidance = o.guidance.scale, options.features = o.features, options.data = o.data, options.format = o.format, options.reference = o.reference;
  std::unique_ptr<Progress> progress;
  options.progress = [&](std::int64_t done, std::int64_t total) {
    if (!progress) progress = std::make_unique<Progress>("compare", total);
    progress->update(done);
  };
  const Comparison result = compare_models(o.run, options);
  progress.reset();
  const std::filesystem::path folder = o.run;
  write_file_atomic(folder / "comparison.json", to_json(result).dump(1) + "\n");
  write_file_atomic(folder / "comparison.csv", to_csv(result));
  write_file_atomic(folder / "comparison.html", to_html(result));
  if (o.json) std::cout << to_json(result).dump() << std::endl;
  else std::cout << table_text(result) << std::flush;
  log_info(cat("wrote comparison.json, .csv and .html to ", o.run));
  return 0;
}

FeatureNetwork as_network(const Classifier& judge) {
  return {"judge", [&judge](const at::Tensor& images) { return judge.features(images); }};
}

FeatureMoments reference_moments(const EvalOptions& o, const Classifier& judge) {
  if (!o.reference.empty()) {
    const ParameterSet t = read_safetensors(o.reference).tensors;
    return {t.at("mean").to(at::kDouble), t.at("covariance").to(at::kDouble), t.at("count").item<double>()};
  }
  if (o.data.empty()) fail(ErrorKind::kUsage, "the Frechet distance needs --reference FILE (feature moments) or --data FOLDER (held-out images)");
  const ImageDataset held_out = read_dataset(o.format, o.data, "test");
  const FeatureMoments moments = feature_moments(features_of(as_network(judge), held_out.batch(at::arange(held_out.size()))));
  if (!o.make_reference.empty()) {
    ParameterSet t;
    t.add("mean", moments.mean), t.add("covariance", moments.covariance), t.add("count", at::full({1}, moments.count, at::kDouble));
    write_safetensors(o.make_reference, t, {{"what", "moments of the judge's features on held-out images"}});
    log_info("wrote " + o.make_reference);
  }
  return moments;
}

int evaluate_model(const EvalOptions& o) {
  if (o.judge.empty()) fail(ErrorKind::kUsage, "eval --model needs --judge FILE");
  const FlowModel flow = o.model.load(apply(o.compute));
  const auto& model = flow.model;
  const auto judge = load_classifier(o.judge);
  const FeatureMoments reference = reference_moments(o, *judge);
  SamplerConfig sampler = o.sampler;
  sampler.prediction = flow.prediction;
  const RandomStreams streams(static_cast<std::uint64_t>(o.seed));
  nlohmann::ordered_json out{{"model", o.model.model.file}, {"sampler", sampler.name}, {"steps", sampler.steps}, {"samples", o.n}, {"guidance", o.guidance.scale}};
  for (const bool conditional : {true, false}) {
    if (conditional && model->classes() == 0) continue;
    Progress progress(conditional ? "conditional" : "unconditional", o.n);
    DrawOptions options;
    options.n = o.n;
    options.progress = [&](std::int64_t done) { progress.update(done); };
    const auto field = conditional ? guided(model, o.guidance, model->classes()) : model;
    const Draws draws = draw(*field, sampler, *flow.path, model->sample_shape(), streams, conditional ? uniform_labels(streams, 0, model->classes()) : no_labels(), options);
    const at::Tensor images = pixel_decoder()(draws.x).clamp(0, 1), features = features_of(as_network(*judge), images);
    const at::Tensor chosen = at::linear(features, judge->parameters().at("fc2.weight"), judge->parameters().at("fc2.bias")).argmax(1);
    const std::string kind = conditional ? "conditional" : "unconditional";
    if (conditional) {
      const Estimate hits = mean_estimate((chosen == draws.labels).to(at::kDouble));
      out["class_accuracy"] = hits.value, out["class_accuracy_se"] = hits.se;
    }
    out["frechet_" + kind] = frechet_distance(feature_moments(features), reference);
  }
  // What a perfect model would show: the distance is biased upwards by about tr(S)/N.
  out["frechet_floor"] = (reference.covariance.trace().item<double>()) / static_cast<double>(o.n);
  std::cout << out.dump(o.json ? -1 : 1) << std::endl;
  return 0;
}

}  // namespace

void add_eval(CLI::App& program, Action& action) {
  auto* verb = program.add_subcommand("eval", "tilted-law check of a run (--run), or quality of a model by a judge (--model)");
  auto o = std::make_shared<EvalOptions>();
  auto* run = verb->add_option("--run", o->run, "run directory of `tiltflow finetune`; exit 1 when the check fails");
  o->sampler.steps = 40;
  auto* model = add_model_options(*verb, o->model)->excludes(run);
  verb->add_option("--judge", o->judge, "classifier file")->needs(model);
  verb->add_option("--reference", o->reference, "feature moments to compare with");
  verb->add_option("--data", o->data, "folder of held-out images instead of --reference");
  verb->add_option("--format", o->format, "of --data: idx, cifar or folder")->capture_default_str();
  verb->add_option("--make-reference", o->make_reference, "write the moments of --data to this file");
  verb->add_option("--n", o->n, "samples")->capture_default_str()->check(CLI::Range(16, 10'000'000));
  add_sampler_options(*verb, o->sampler);
  add_guidance_options(*verb, o->guidance);
  add_compute_options(*verb, o->compute);
  verb->add_option("--seed", o->seed, "seed")->capture_default_str()->check(CLI::NonNegativeNumber);
  verb->add_flag("--table", o->table, "with --run: base against tuned, SDE and ODE, without and with --guidance: rewards, diversity, Frechet distance, precision, recall")->needs(run);
  verb->add_option("--features", o->features, "of --table: pixels, a classifier file or a CLIP image tower")->capture_default_str();
  verb->add_option("--seeds", o->seeds, "of --table: seeds with --n samples each")->check(CLI::Range(1, 1000))->capture_default_str();
  verb->add_flag("--json", o->json, "one JSON object on stdout");
  verb->callback([=, &action] {
    action = [o, verb] {
      const std::vector<std::string> table{"--run", "--table", "--json", "--n", "--seeds", "--features", "--guidance", "--data", "--format", "--reference"};
      if (o->table) refuse_other_options(*verb, table, "on --table");
      else if (!o->run.empty()) refuse_other_options(*verb, {"--run", "--json"}, "on the check of a run: it follows the run's [check] section");
      else if (verb->count("--seeds") + verb->count("--features") > 0) fail(ErrorKind::kUsage, "--seeds and --features belong to --run DIR --table");
      if (o->run.empty() == o->model.model.file.empty()) fail(ErrorKind::kUsage, "eval needs --run DIR or --model FILE");
      return o->run.empty() ? evaluate_model(*o) : o->table ? compare(*o) : check(*o);
    };
  });
}

}  // namespace tiltflow::app
