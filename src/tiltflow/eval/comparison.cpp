#include "tiltflow/eval/comparison.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "tiltflow/base/error.h"
#include "tiltflow/base/log.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/eval/run_check.h"
#include "tiltflow/io/dataset.h"
#include "tiltflow/io/json_lines.h"
#include "tiltflow/report/html.h"
#include "tiltflow/report/svg_text.h"
#include "tiltflow/report/table.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

struct RealImages {
  at::Tensor features;  // undefined when only moments are known
  std::optional<FeatureMoments> moments;
};

RealImages real_images(const ComparisonOptions& o, const FeatureNetwork& network) {
  RealImages out;
  if (!o.reference.empty()) out.moments = read_moments(o.reference);
  if (o.data.path.empty()) return out;
  const ImageDataset data = read_dataset(o.data, "test");
  require_two_pictures(data.size(), o.data.path);
  out.features = features_of(network, at::arange(std::min<std::int64_t>(data.size(), 10000)),
                             [&](const at::Tensor& indices) { return data.batch(indices); });
  const FeatureMoments moments = feature_moments(out.features);
  const std::string singular =
      singular_note(out.features.size(0), out.features.size(1), o.data.path);
  if (!singular.empty()) log_warn(singular);
  if (!out.moments) out.moments = moments;
  if (!o.make_reference.empty()) write_moments(o.make_reference, moments, network.name);
  return out;
}

// What one model made of one seed, and how it looks to the feature network.
struct Sampled {
  Draws draws;
  at::Tensor features;
};
using BaseSamples = std::map<std::string, std::vector<Sampled>>;

// Everything that decides what a run's base model draws; runs that differ in reward or training
// share their base samples.
std::string base_identity(const std::filesystem::path& run, const std::vector<Override>& changes) {
  Fields fields(run / "config.toml", changes);
  FinetuneConfig config;
  bind(fields, config);
  fields.finish();
  std::string out;
  for (const ResolvedValue& value : fields.resolved()) {
    for (const char* prefix :
         {"seed", "model.", "decoder.", "labels.", "sampler.", "compute.", "guidance."}) {
      if (starts_with(value.key, prefix)) out += cat(value.key, " = ", value.value, "\n");
    }
  }
  return out;
}

struct Compared {
  const FinetuneSetup& setup;
  const FlowModel& tuned;
  const FeatureNetwork& network;
  const RealImages& real;
  const ComparisonOptions& options;
  std::string base;  // base_identity of the run
  BaseSamples& drawn;
};

std::vector<Sampled> sample(const Compared& c, bool is_tuned, const SamplerConfig& sampler,
                            double scale, const std::function<void(std::int64_t)>& progress) {
  const ComparisonOptions& o = c.options;
  const FlowModel& flow = c.setup.flow;
  const std::int64_t classes = flow.model->classes();
  Guidance guidance = c.setup.config.guidance.guidance;  // its channels and interval
  guidance.scale = scale;
  const auto base = guided(flow.model, guidance, classes);
  const auto field = is_tuned ? guided(c.tuned.model, guidance, classes) : base;
  std::vector<Sampled> out;
  for (std::int64_t seed = 1; seed <= o.seeds; ++seed) {  // the same noise and labels for every row
    const RandomStreams streams(static_cast<std::uint64_t>(c.setup.config.seed + seed));
    DrawOptions options;
    options.n = o.n;
    if (is_tuned && !is_ode(sampler)) options.reference = base.get();
    options.progress = [&](std::int64_t done) { progress((seed - 1) * o.n + done); };
    Sampled one{draw(*field, sampler, *flow.path, flow.model->sample_shape(), streams,
                     make_labels(c.setup.config.labels, classes, streams, 0, 0), options),
                {}};
    one.features = features_of(c.network, one.draws.x,
                               [&](const at::Tensor& x) { return c.setup.reward->decode(x); });
    out.push_back(std::move(one));
  }
  return out;
}

ComparedModel compare(const Compared& c, bool is_tuned, const SamplerConfig& sampler, double scale,
                      const std::function<void(std::int64_t)>& progress) {
  std::vector<Sampled> samples;
  const std::string key = cat(c.base, sampler.name, " ", sampler.steps, " ", scale);
  if (const auto found = c.drawn.find(key); !is_tuned && found != c.drawn.end()) {
    samples = found->second;
  } else {
    samples = sample(c, is_tuned, sampler, scale, progress);
  }
  if (!is_tuned) c.drawn[key] = samples;
  std::vector<at::Tensor> rewards, features, costs;
  for (const Sampled& one : samples) {
    rewards.push_back(c.setup.reward->score(one.draws.x, one.draws.labels).to(at::kDouble));
    features.push_back(one.features);
    if (one.draws.cost.defined()) costs.push_back(one.draws.cost);
  }
  const at::Tensor all = at::cat(features);
  ComparedModel row{"", is_tuned ? "tuned" : "base", sampler.name, scale, {}};
  const auto add = [&](const char* name, std::optional<Estimate> value) {
    row.figures.emplace_back(name, value);
  };
  add("reward", estimate_over_seeds(rewards));
  add("control cost (nats)",
      costs.empty() ? std::nullopt : std::optional(mean_estimate(at::cat(costs).to(at::kDouble))));
  add("diversity", diversity(all));
  if (c.real.moments) {
    add("Frechet", Estimate{frechet_distance(feature_moments(all), *c.real.moments), 0});
    add("Frechet, extrapolated", all.size(0) >= 100 ? std::optional(frechet_extrapolated(
                                                          all, *c.real.moments, c.setup.streams))
                                                    : std::nullopt);
  }
  if (c.real.features.defined()) {
    const PrecisionRecall pr = precision_recall(
        all, c.real.features.narrow(0, 0, std::min(all.size(0), c.real.features.size(0))));
    add("precision", pr.precision);
    add("recall", pr.recall);
  }
  return row;
}

// Of the law that the run's evaluations and pictures show.
double scale_of_run(const FinetuneConfig& config) {
  return config.guidance.mode == "none" ? 1 : config.guidance.guidance.scale;
}

bool same_figures(const ComparedModel& a, const ComparedModel& b) {
  if (a.model != b.model || a.sampler != b.sampler || a.guidance != b.guidance ||
      a.figures.size() != b.figures.size()) {
    return false;
  }
  for (std::size_t i = 0; i < a.figures.size(); ++i) {
    const auto& x = a.figures[i].second;
    const auto& y = b.figures[i].second;
    if (x.has_value() != y.has_value() || (x && (x->value != y->value || x->se != y->se))) {
      return false;
    }
  }
  return true;
}

}  // namespace

ModelComparison compare_models(const std::vector<std::filesystem::path>& runs,
                               const ComparisonOptions& o) {
  const FeatureNetwork network = make_feature_network(o.features);
  const RealImages real = real_images(o, network);
  ModelComparison out;
  out.features = network.name;
  out.samples = o.n * o.seeds;
  const std::int64_t total =
      static_cast<std::int64_t>((o.guidance ? 8 : 4) * runs.size()) * o.n * o.seeds;
  std::int64_t before = 0;
  BaseSamples drawn;
  const auto add = [&](const std::string& run, ComparedModel row) {
    row.run = run;
    before += o.n * o.seeds;
    if (row.model == "base" &&
        std::any_of(out.rows.begin(), out.rows.end(),
                    [&](const ComparedModel& other) { return same_figures(row, other); })) {
      return;
    }
    out.rows.push_back(std::move(row));
  };
  for (const std::filesystem::path& run : runs) {
    const FinishedRun finished = load_finished_run(run, o.changes);
    const FinetuneSetup& setup = finished.setup;
    if (o.guidance.value_or(1) != 1 &&
        (setup.config.labels.kind == "none" || setup.flow.model->classes() == 0)) {
      fail(ErrorKind::kUsage, cat("guidance needs a run with labels, ", run.string(), " has none"));
    }
    out.runs.push_back(run.string());
    SamplerConfig ode = setup.config.sampler;
    ode.name = setup.config.check.ode.empty() ? "ode-heun" : setup.config.check.ode;
    ode.steps = setup.config.check.ode_steps;
    const Compared compared{setup, finished.tuned, network, real, o, base_identity(run, o.changes),
                            drawn};
    std::vector<double> scales{scale_of_run(setup.config)};
    if (o.guidance && *o.guidance != scales[0]) scales.push_back(*o.guidance);
    for (const double scale : scales) {
      for (const SamplerConfig& sampler : {setup.config.sampler, ode}) {
        for (const bool is_tuned : {false, true}) {
          add(run.string(), compare(compared, is_tuned, sampler, scale, [&](std::int64_t done) {
                if (o.progress) o.progress(before + done, total);
              }));
        }
      }
    }
  }
  return out;
}

namespace {

TextTable cells(const ModelComparison& c) {
  TextTable out{{"run", "model", "sampler", "guidance"}};
  for (const auto& [name, value] : c.rows.front().figures) out[0].push_back(name);
  for (const ComparedModel& row : c.rows) {
    out.push_back({row.run, row.model, row.sampler, compact(row.guidance)});
    for (const auto& [name, value] : row.figures) out.back().push_back(show(value));
  }
  return out;
}

}  // namespace

std::string table_text(const ModelComparison& c) {
  return cat("features: ", c.features, "; ", c.samples, " samples a row\n") +
         aligned_text(cells(c));
}

namespace {

std::string csv_text(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) out += c == '"' ? std::string("\"\"") : std::string(1, c);
  return out + "\"";
}

}  // namespace

std::string to_csv(const ModelComparison& c) {
  std::string out = "run,model,sampler,guidance";
  for (const auto& [name, value] : c.rows.front().figures) {
    out += cat(",\"", name, "\",\"", name, " se\"");
  }
  out += "\n";
  for (const ComparedModel& row : c.rows) {
    out += cat(csv_text(row.run), ",", row.model, ",", row.sampler, ",", compact(row.guidance, 9));
    for (const auto& [name, value] : row.figures) {
      out += value ? cat(",", compact(value->value, 9), ",", compact(value->se, 9)) : ",,";
    }
    out += "\n";
  }
  return out;
}

std::string to_html(const ModelComparison& c) {
  const std::string body = cat("<h1>Base and tuned: ", xml_text(join(c.runs, ", ")),
                               "</h1><p>Features: ", xml_text(c.features), "; ", c.samples,
                               " samples a row, the same noise and labels in all of them.</p>");
  return html_page("tiltflow: base and tuned",
                   body + html_table(cells(c), "figures of base and tuned models"));
}

nlohmann::ordered_json to_json(const ModelComparison& c) {
  nlohmann::ordered_json out{{"runs", c.runs},
                             {"features", c.features},
                             {"samples", c.samples},
                             {"rows", nlohmann::ordered_json::array()}};
  for (const ComparedModel& row : c.rows) {
    nlohmann::ordered_json one{{"run", row.run},
                               {"model", row.model},
                               {"sampler", row.sampler},
                               {"guidance", row.guidance}};
    for (const auto& [name, value] : row.figures) {
      one[name] = value ? nlohmann::ordered_json{{"value", json_number(value->value)},
                                                 {"se", json_number(value->se)}}
                        : nlohmann::ordered_json();
    }
    out["rows"].push_back(std::move(one));
  }
  return out;
}

}  // namespace tiltflow
