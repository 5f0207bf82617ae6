#include "tiltflow/eval/method_comparison.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "tiltflow/base/count.h"
#include "tiltflow/base/error.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/folder_claim.h"
#include "tiltflow/base/problems.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/eval/method_comparison_page.h"
#include "tiltflow/eval/quality.h"
#include "tiltflow/eval/run_check.h"
#include "tiltflow/io/image.h"
#include "tiltflow/io/json_lines.h"
#include "tiltflow/io/safetensors.h"
#include "tiltflow/report/run_report.h"
#include "tiltflow/reward/importance.h"
#include "tiltflow/sampler/condition_groups.h"
#include "tiltflow/sampler/sample.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/train/start_check.h"

namespace tiltflow {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr std::int64_t kShown = 32;
constexpr std::int64_t kScattered = 400;

std::string folder_name(const ComparedRun& run) {
  std::string name = run.method;
  for (char& c : name) {
    if (!std::isalnum(static_cast<unsigned char>(c)) && c != '.' && c != '-' && c != '_') c = '_';
  }
  return cat(run.timed ? "timed/" : "runs/", name, "_x", compact(run.scale), "_seed", run.seed);
}

// What every measurement of a comparison shares.
struct Yardstick {
  const ComparisonRecipe& recipe;
  FinetuneSetup setup;  // of the configuration without a method's keys, factor 1
  std::vector<std::pair<std::string, StateReward>> held_out;
  std::optional<FeatureNetwork> network;  // pictures only
  std::optional<FeatureMoments> reference;
  RandomStreams streams{20240908};  // the same noise for every model, whatever its seed

  at::Tensor features(const at::Tensor& x) const {
    return network ? features_of(*network, x,
                                 [this](const at::Tensor& s) { return setup.reward->decode(s); })
                   : x.flatten(1);
  }
};

// Draws from `field`, measures them, and leaves pictures or points for the page in `picture` (.png,
// or .safetensors of vectors).
ModelFigures measure(Yardstick& y, const VelocityField& field, const VelocityField* base,
                     double scale, const fs::path& picture) {
  const FinetuneConfig& config = y.setup.config;
  const LabelSource all =
      make_labels(config.labels, y.setup.flow.model->classes(), y.streams, RunKey::kComparison, 0);
  GroupingOptions grouping;
  grouping.least = config.check.per_condition;
  grouping.most = config.check.conditions;
  const ConditionGroups groups = in_groups(all, all, y.recipe.samples, grouping, "samples");
  DrawOptions options;
  options.n = groups.whole(y.recipe.samples);
  options.step = RunKey::kComparison;
  options.reference = base;
  options.keep_prediction = true;
  const Draws draws = draw(field, config.sampler, *y.setup.flow.path,
                           y.setup.flow.model->sample_shape(), y.streams, groups.labels, options);
  const at::Tensor r = y.setup.reward->score(draws.x, draws.labels).to(at::kDouble);
  ModelFigures out;
  out.figures.emplace_back("reward", mean_estimate(r));
  for (const auto& [name, reward] : y.held_out) {
    out.figures.emplace_back("held out: " + name,
                             mean_estimate(reward.score(draws.x, draws.labels).to(at::kDouble)));
  }
  if (base && draws.cost.defined()) {
    const PathGap gap = path_gap(r * scale, draws.log_ratio, draws.labels);
    out.figures.emplace_back("control cost", mean_estimate(draws.cost.to(at::kDouble)));
    out.figures.emplace_back("gap", Estimate{gap.gap, gap.gap_se});
  }
  const at::Tensor features = y.features(draws.x).to(at::kDouble);
  out.figures.emplace_back("diversity", diversity(features));
  const FeatureMoments moments = feature_moments(features);
  if (!y.reference) {
    y.reference = moments;  // the base comes first
  } else {
    out.figures.emplace_back("Frechet distance",
                             Estimate{frechet_distance(moments, *y.reference), 0});
  }
  make_directories(picture.parent_path());
  if (is_picture(y.setup.reward->decode(draws.x.narrow(0, 0, 1)).sizes().slice(1))) {
    const at::Tensor shown =
        y.setup.reward->decode(draws.prediction.narrow(0, 0, std::min(kShown, options.n)))
            .clamp(0, 1);
    write_png(fs::path(picture).replace_extension(".png"),
              enlarge(image_grid(shown, 8), shown.size(3) < 64 ? 2 : 1));
  } else if (draws.x.dim() == 2) {
    ParameterSet points;
    points.add("points", draws.x.narrow(0, 0, std::min(kScattered, options.n)).contiguous());
    write_safetensors(fs::path(picture).replace_extension(".safetensors"), points, {});
  }
  return out;
}

// Rewards against cost, from the run's log.
void read_curve(const fs::path& folder, double scale, double batch, ModelFigures& out) {
  double evaluations = 0;
  double seconds = 0;
  for (const auto& line : read_json_lines(folder / "metrics.jsonl")) {
    if (line.contains("evaluations")) {
      evaluations += number_from_json(line["evaluations"]) * batch;
      out.steps = std::max(out.steps, line.value("step", 0.0));
    }
    if (line.contains("seconds")) seconds += number_from_json(line["seconds"]);
    if (line.contains("eval_reward")) {
      out.curve.push_back({evaluations, seconds, number_from_json(line["eval_reward"]) / scale});
    }
  }
  out.evaluations = evaluations;
  out.seconds = seconds;
}

Json to_json(const ModelFigures& f) {
  Json figures = Json::object();
  Json curve = Json::array();
  for (const auto& [name, e] : f.figures) {
    figures[name] = {{"value", json_number(e.value)}, {"se", json_number(e.se)}};
  }
  for (const CurvePoint& p : f.curve) {
    curve.push_back({json_number(p.evaluations), json_number(p.seconds), json_number(p.reward)});
  }
  return {{"figures", figures},
          {"steps", f.steps},
          {"evaluations", f.evaluations},
          {"seconds", f.seconds},
          {"curve", curve}};
}

ModelFigures figures_from_json(const Json& j) {
  ModelFigures out;
  for (const auto& [name, e] : j.at("figures").items()) {
    out.figures.emplace_back(
        name, Estimate{number_from_json(e.at("value")), number_from_json(e.at("se"))});
  }
  for (const auto& p : j.at("curve")) {
    out.curve.push_back(
        {number_from_json(p.at(0)), number_from_json(p.at(1)), number_from_json(p.at(2))});
  }
  out.steps = j.at("steps").get<double>();
  out.evaluations = j.at("evaluations").get<double>();
  out.seconds = j.at("seconds").get<double>();
  return out;
}

std::string describe(const RewardTerm& t) {
  std::string out =
      cat(t.name, " ", compact(t.scale, 17), " ", t.label, " ", compact(t.curvature, 17), " ",
          compact(t.target, 17), " ", t.over_normal, " ", compact(t.level, 17), " ", t.judge, " ",
          t.clip, " ", t.head, " ", t.file);
  for (const std::vector<double>* values : {&t.slope, &t.center}) {
    for (const double v : *values) out += cat(" ", compact(v, 17));
  }
  for (const auto& [key, value] : t.args) out += cat(" ", key, "=", value);
  return out + ";";
}

std::vector<Override> overrides_of(const ComparedRun& run, const ComparisonRecipe& recipe,
                                   const FinetuneConfig& plain, const std::vector<Override>& set) {
  std::vector<Override> out = set;
  for (const ComparedMethod& m : recipe.run) {
    if (m.name != run.method) continue;
    for (const Override& change :
         overrides_from(cat("set of the [[run]] ", m.name), m.set, recipe.folder)) {
      out.push_back(change);
    }
  }
  for (std::size_t i = 0; i < plain.reward.size(); ++i) {
    out.emplace_back(cat("reward[", i, "].scale=", shortest(plain.reward[i].scale * run.scale)),
                     "scales of the recipe");
  }
  out.emplace_back(cat("seed=", run.seed), "seeds of the recipe");
  return out;
}

}  // namespace

void bind(Fields& f, ComparedMethod& c) {
  f.value("name", c.name, "name in tables and of folders");
  f.value("set", c.set,
          "configuration keys of this method, e.g. [\"method.name=draft\", \"method.last=2\"]");
}

void bind(Fields& f, ComparisonRecipe& c) {
  f.value("title", c.title, "headline of the page");
  f.path("config", c.config, PathKind::kAll, "fine-tuning configuration that all runs share");
  f.value("set", c.set, "configuration keys of all runs, e.g. [\"batch=32\"]");
  f.value("seeds", c.seeds, "every method is run with each of them");
  f.value("scales", c.scales,
          "factors on the scales of all rewards; every method is run with each of them");
  f.value("evaluations", c.evaluations, "network evaluations of a run; 0 = no such budget",
          at_least(0));
  f.value(
      "seconds", c.seconds,
      "seconds of training of a run; 0 = no such budget; with evaluations: a second set of runs",
      at_least(0));
  f.value("samples", c.samples, "samples that a model is measured with", at_least_integer(100));
  f.path("features", c.features, PathKind::kWeights,
         "network of diversity and Frechet distance: pixels, a classifier file, a CLIP",
         {"pixels"});
  f.path("reference", c.reference, PathKind::kAll,
         "feature statistics of real data (eval --make-reference, or npz); empty = the base "
         "model's samples");
  f.value("reach", c.reach,
          "time-to-reward: share of the way from the base's reward to the best method's",
          between(0.01, 1));
  f.list("held_out", c.held_out);
  f.list("run", c.run);
}

double ModelFigures::find(const std::string& name) const {
  for (const auto& [key, e] : figures) {
    if (key == name) return e.value;
  }
  return std::nan("");
}

std::vector<ComparedRun> planned_comparison(const ComparisonRecipe& recipe) {
  if (recipe.run.empty()) {
    fail(ErrorKind::kConfig, "the recipe compares nothing",
         "add sections [[run]] with name and set");
  }
  if (recipe.seeds.empty() || recipe.scales.empty()) {
    fail(ErrorKind::kConfig, "the recipe has no seeds or no scales");
  }
  if (recipe.evaluations <= 0 && recipe.seconds <= 0) {
    fail(ErrorKind::kConfig, "the recipe has no budget",
         "set evaluations (network evaluations of a run) or seconds");
  }
  std::set<std::string> folders;
  std::vector<ComparedRun> out;
  for (const bool timed : {false, true}) {
    if (timed ? recipe.seconds <= 0 : recipe.evaluations <= 0) continue;
    for (const double scale : recipe.scales) {
      if (!(scale > 0)) fail(ErrorKind::kConfig, cat("scales: ", scale, " is not positive"));
      for (const std::int64_t seed : recipe.seeds) {
        for (const ComparedMethod& m : recipe.run) {
          if (m.name.empty()) fail(ErrorKind::kConfig, "a section [[run]] has no name");
          ComparedRun run;
          run.method = m.name;
          run.scale = scale;
          run.seed = seed;
          run.timed = timed;
          run.status = "not begun";
          run.folder = folder_name(run);
          if (!folders.insert(run.folder).second) {
            fail(ErrorKind::kConfig, cat("two runs would be ", run.folder),
                 "give every [[run]] its own name, and every seed and scale once");
          }
          out.push_back(std::move(run));
        }
      }
    }
  }
  return out;
}

namespace {

struct Prepared {
  Comparison comparison;
  ResolvedConfig recipe;
  fs::path config;            // of the task
  std::vector<Override> set;  // keys of all runs
  FinetuneSetup setup;        // without a method's keys, factor 1
};

// Every method's keys are read here, before the first run: a slip in the last one should not show
// after an hour.
Prepared prepare(const fs::path& file, const std::vector<Override>& overrides,
                 const std::vector<Override>& extra) {
  Prepared out;
  out.comparison.recipe = load_config<ComparisonRecipe>(file, overrides, &out.recipe);
  out.comparison.recipe.folder = fs::absolute(file).parent_path();
  const ComparisonRecipe& recipe = out.comparison.recipe;
  out.comparison.runs = planned_comparison(recipe);
  if (recipe.config.empty()) {
    fail(ErrorKind::kConfig,
         "config is missing: the fine-tuning configuration that all runs share");
  }
  out.set = overrides_from("set of the recipe", recipe.set, recipe.folder);
  out.set.insert(out.set.end(), extra.begin(), extra.end());
  out.config = recipe.config;
  out.setup = set_up(load_config<FinetuneConfig>(out.config, out.set));
  for (const ComparedRun& run : out.comparison.runs) {
    if (run.seed == recipe.seeds[0] && run.scale == recipe.scales[0]) {
      load_config<FinetuneConfig>(out.config, overrides_of(run, recipe, out.setup.config, out.set));
    }
  }
  return out;
}

}  // namespace

std::vector<ComparedRun> check_comparison(const fs::path& recipe,
                                          const std::vector<Override>& overrides,
                                          const std::vector<Override>& set) {
  const Prepared prepared = prepare(recipe, overrides, set);
  const ComparisonRecipe& plan = prepared.comparison.recipe;
  Problems problems;
  for (const RewardTerm& term : plan.held_out) {
    problems.check("held_out", [&] { make_reward(term); });
  }
  if (prepared.setup.flow.model->sample_shape().size() == 3) {
    problems.check("features", [&] { make_feature_network(plan.features); });
  }
  if (!plan.reference.empty()) problems.check("reference", [&] { read_moments(plan.reference); });
  for (const ComparedRun& run : prepared.comparison.runs) {
    if (run.seed != plan.seeds[0] || run.scale != plan.scales[0]) continue;
    problems.check(run.method, [&] {
      check_start(set_up(load_config<FinetuneConfig>(
          prepared.config, overrides_of(run, plan, prepared.setup.config, prepared.set))));
    });
  }
  problems.raise();
  return prepared.comparison.runs;
}

namespace {

// The measuring of a comparison: one yardstick for the base and for every run.
class ComparisonRunner {
 public:
  ComparisonRunner(Prepared prepared, fs::path out)
      : comparison(std::move(prepared.comparison)),
        config_(std::move(prepared.config)),
        set_(std::move(prepared.set)),
        out_(std::move(out)),
        yardstick_{comparison.recipe, std::move(prepared.setup), {}, {}, {}} {
    const ComparisonRecipe& recipe = comparison.recipe;
    const FinetuneSetup& setup = yardstick_.setup;
    for (const RewardTerm& term : recipe.held_out) {
      yardstick_.held_out.emplace_back(
          term.name, StateReward(make_weighted_sum({term}), [&setup](const at::Tensor& s) {
            return setup.reward->decode(s);
          }));
      held_out_ += describe(term);
    }
    if (setup.flow.model->sample_shape().size() == 3) {
      yardstick_.network = make_feature_network(recipe.features);
    }
    if (!recipe.reference.empty()) yardstick_.reference = read_moments(recipe.reference);
    for (const InputPath& one : prepared.recipe.inputs) {
      if (one.name != "config") files_[one.name] = fingerprint_of(one.path, one.kind).sha256;
    }
  }
  ComparisonRunner(const ComparisonRunner&) = delete;  // the yardstick refers to the recipe

  void measure_base() {
    const FinetuneSetup& setup = yardstick_.setup;
    comparison.base =
        measure(yardstick_, *setup.for_check(setup.flow.model), nullptr, 1, out_ / "base");
  }

  // Trains and measures a run, unless its figures are there; returns its status.
  std::string carry_out(ComparedRun& run) {
    const FinetuneSetup& setup = yardstick_.setup;
    const ComparisonRecipe& recipe = comparison.recipe;
    const fs::path folder = out_ / run.folder;
    const Budget budget{run.timed ? 0 : recipe.evaluations, run.timed ? recipe.seconds : 0};
    const PlannedRun planned =
        plan_run(config_, overrides_of(run, recipe, setup.config, set_), budget, folder);
    const bool trained = train_unless_there(planned, folder);
    const fs::path kept = folder / "figures.json";
    const Json request = request_of(folder);
    const Json stored = !trained && fs::exists(kept) ? Json::parse(read_file(kept)) : Json();
    if (stored.is_object() && stored.value("request", Json()) == request) {
      run.figures = figures_from_json(stored);
      return "there already";
    }
    const FinishedRun finished = load_finished_run(folder);
    run.figures = measure(yardstick_, *finished.setup.for_check(finished.tuned.model),
                          setup.for_check(setup.flow.model).get(), run.scale, folder / "measured");
    read_curve(folder, run.scale, static_cast<double>(planned.config.batch), run.figures);
    Json j = to_json(run.figures);
    j["request"] = request;
    write_file_atomic(kept, j.dump(1) + "\n");
    write_report(folder);
    return "done";
  }

  // All runs so far.
  void write() const {
    const Comparison& c = comparison;
    Json all{{"title", c.recipe.title}, {"base", to_json(c.base)}, {"runs", Json::array()}};
    for (const ComparedRun& each : c.runs) {
      Json j{{"method", each.method},
             {"scale", each.scale},
             {"seed", each.seed},
             {"timed", each.timed},
             {"status", each.status}};
      if (is_done(each.status)) j.update(to_json(each.figures));
      all["runs"].push_back(std::move(j));
    }
    write_file_atomic(out_ / "compare.json", all.dump(1) + "\n");
    write_comparison_page(c, out_);
  }

  Comparison comparison;

 private:
  // Figures on disk belong to what they were measured with, and to the files of that time.
  Json request_of(const fs::path& folder) const {
    const ComparisonRecipe& recipe = comparison.recipe;
    return {{"samples", recipe.samples},
            {"features", recipe.features},
            {"reference", recipe.reference},
            {"held_out", held_out_},
            {"files", files_},
            {"model", fingerprint_of(folder / "model.safetensors", PathKind::kAll).sha256}};
  }

  fs::path config_;
  std::vector<Override> set_;
  fs::path out_;
  Yardstick yardstick_;
  std::string held_out_;
  Json files_ = Json::object();
};

}  // namespace

Comparison compare_methods(
    const fs::path& file, const std::vector<Override>& overrides,
    const std::vector<Override>& extra, const fs::path& out,
    const std::function<void(std::size_t, std::size_t, const ComparedRun&)>& begins) {
  ComparisonRunner runner(prepare(file, overrides, extra), out);
  const FolderClaim claim(out);
  runner.measure_base();
  std::vector<ComparedRun>& runs = runner.comparison.runs;
  for (std::size_t i = 0; i < runs.size(); ++i) {
    if (begins) begins(i, runs.size(), runs[i]);
    runs[i].status = status_of(runs[i].folder, [&] { return runner.carry_out(runs[i]); });
    runner.write();
  }
  return std::move(runner.comparison);
}

}  // namespace tiltflow
