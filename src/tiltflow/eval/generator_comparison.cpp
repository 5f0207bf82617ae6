#include "tiltflow/eval/generator_comparison.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/eval/quality.h"
#include "tiltflow/io/image.h"
#include "tiltflow/io/json_lines.h"
#include "tiltflow/models/model_file.h"
#include "tiltflow/report/html.h"
#include "tiltflow/report/svg_text.h"
#include "tiltflow/report/table.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/tensor/parallel.h"

namespace tiltflow {
namespace {

using Figures = std::vector<std::pair<std::string, std::optional<Estimate>>>;

at::Tensor images_of(const Generator& g, const at::Tensor& z,
                     const at::Tensor& labels) {  // in [0, 1], in pieces on all cores
  const at::NoGradGuard no_grad;
  std::vector<std::int64_t> shape = g.sample_shape();
  shape.insert(shape.begin(), z.size(0));
  const at::Tensor out = at::empty(shape);
  parallel_chunks(z.size(0), 32, [&](std::int64_t begin, std::int64_t end) {
    const at::Tensor made = generate_rows(
        g, z.slice(0, begin, end), labels.defined() ? labels.slice(0, begin, end) : at::Tensor());
    out.slice(0, begin, end).copy_(made.add(1).div(2).clamp(0, 1));
  });
  return out;
}

at::Tensor judged(const Classifier& judge, const at::Tensor& images, bool logits) {
  return features_of(
      {"judge", [&](const at::Tensor& x) { return logits ? judge.logits(x) : judge.features(x); }},
      images);
}

// What every generator is measured on.
struct Bench {
  const OneStepConfig& config;
  const GeneratorComparisonOptions& options;
  std::shared_ptr<const Classifier> judge;  // null: none
  RandomStreams streams;
  AssignTargets held_out;  // images undefined: none
  FeatureMoments reference;
  at::Tensor z, labels, base_images;
  double real_variance = 1;
};

Estimate mean_square(const at::Tensor& a, const at::Tensor& b) {
  return mean_estimate((a - b).flatten(1).square().mean(1).to(at::kDouble));
}

Figures random_figures(const Bench& b, const at::Tensor& images, const at::Tensor& labels) {
  Figures out;
  if (b.judge) {
    std::optional<Estimate> accuracy;
    if (labels.defined()) {
      accuracy =
          mean_estimate((judged(*b.judge, images, true).argmax(1) == labels).to(at::kDouble));
    }
    out.emplace_back("class accuracy", accuracy);
    const at::Tensor features = judged(*b.judge, images, false);
    out.emplace_back("Frechet", images.size(0) >= 100 ? std::optional(frechet_extrapolated(
                                                            features, b.reference, b.streams))
                                                      : std::nullopt);
  }
  const Estimate variance = variance_within_classes(images, labels);
  out.emplace_back("variance within classes",
                   Estimate{variance.value / b.real_variance, variance.se / b.real_variance});
  return out;
}

Figures measure(const Bench& b, const Generator& g, const std::optional<AssignedSet>& pairs,
                at::Tensor& images) {
  const AssignConfig& c = b.config.assign;
  Figures out;
  if (pairs) {
    out.emplace_back("matched error", mean_square(images_of(g, pairs->noise, pairs->labels) * 2,
                                                  pairs->images.to(at::kFloat).div(127.5)));
  } else if (!b.options.pairs.empty()) {
    out.emplace_back("matched error", std::nullopt);
  }
  if (b.held_out.images.defined()) {
    const Assigner assigner(g, c, b.streams, feature_function(b.config.features));
    at::Tensor start;
    if (c.init != "random") start = assigner.transport(b.held_out, 0);
    const AssignResult found = assigner.assign(b.held_out, 0, start);
    out.emplace_back("held-out error", mean_square(images_of(g, found.noise, b.held_out.labels) * 2,
                                                   b.held_out.images + 1));
  }
  images = images_of(g, b.z, b.labels);
  for (auto& figure : random_figures(b, images, b.labels)) out.push_back(std::move(figure));
  out.emplace_back("distance to base", b.base_images.defined()
                                           ? mean_square(images * 2, b.base_images * 2)
                                           : Estimate{0, 0});
  return out;
}

// Repetitions differ in their training; their scatter is the error, unless two or three agree by
// chance.
Figures over_repetitions(const std::vector<Figures>& all) {
  Figures out = all.front();
  for (std::size_t j = 0; j < out.size(); ++j) {
    if (!out[j].second) continue;
    std::vector<double> values;
    double within = 0;
    for (const Figures& one : all) {
      values.push_back(one[j].second->value);
      within += one[j].second->se * one[j].second->se;
    }
    const double k = static_cast<double>(all.size());
    const Estimate across = mean_estimate(at::tensor(values, at::kDouble));
    out[j].second =
        Estimate{across.value,
                 all.size() < 2 ? std::sqrt(within) : std::max(across.se, std::sqrt(within) / k)};
  }
  return out;
}

AssignTargets test_targets(TargetsConfig c, std::int64_t count, const Generator& g) {
  c.split = "test";
  c.first = 0;
  c.count = count;
  return read_targets(c, g);
}

}  // namespace

Estimate variance_within_classes(const at::Tensor& images, const at::Tensor& labels) {
  const at::Tensor x = images.flatten(1).to(at::kDouble);
  const at::Tensor classes = labels.defined() ? labels : at::zeros({x.size(0)}, at::kLong);
  const auto variance = [&](const at::Tensor& index) {
    double sum = 0;
    double count = 0;
    const at::Tensor own = classes.index_select(0, index);
    for (std::int64_t label = 0; label <= own.max().item<std::int64_t>(); ++label) {
      const at::Tensor members = index.masked_select(own == label);
      if (members.size(0) < 2) continue;
      sum += x.index_select(0, members).var(0).mean().item<double>();
      ++count;
    }
    return count > 0 ? sum / count : 0;
  };
  // Groups hold whole cycles of the labels: 10 classes in turn and 10 groups would otherwise share
  // no class.
  const at::Tensor all = at::arange(x.size(0), at::kLong);
  const at::Tensor group =
      at::remainder(all.div(classes.max().item<std::int64_t>() + 1, "floor"), 10);
  std::vector<double> parts;
  for (std::int64_t i = 0; i < 10; ++i) {
    const at::Tensor index = all.masked_select(group == i);
    if (index.size(0) >= 4) parts.push_back(variance(index));
  }
  return {variance(all), parts.size() > 1 ? mean_estimate(at::tensor(parts, at::kDouble)).se : 0};
}

namespace {

void require_judge_fits(const GeneratorComparisonOptions& o, const Classifier& judge,
                        const Generator& base) {
  const ClassifierConfig& c = judge.config();
  const std::vector<std::int64_t> seen{c.in_channels, c.input_size, c.input_size};
  if (base.sample_shape() != seen) {
    fail(ErrorKind::kConfig, cat("the judge ", o.judge, " takes pictures ", shape_text(seen),
                                 ", the generator makes ", shape_text(base.sample_shape())));
  }
  if (base.classes() > c.num_classes) {
    fail(ErrorKind::kConfig, cat("the judge ", o.judge, " knows ", c.num_classes,
                                 " classes, the generator has ", base.classes()));
  }
}

Bench prepare_bench(const OneStepConfig& config, const GeneratorComparisonOptions& o,
                    const Generator& base) {
  Bench b{config,
          o,
          o.judge.empty() ? nullptr : load_classifier(o.judge),
          RandomStreams(static_cast<std::uint64_t>(config.seed) + 1),
          {},
          {},
          {},
          {},
          {},
          1};
  if (b.judge) require_judge_fits(o, *b.judge, base);
  const AssignTargets real = test_targets(config.targets, 2000, base);
  if (o.held_out > 0) b.held_out = test_targets(config.targets, o.held_out, base);
  const at::Tensor real_images = (real.images + 1) / 2;
  if (b.judge) b.reference = feature_moments(judged(*b.judge, real_images, false));
  b.real_variance = variance_within_classes(real_images, real.labels).value;
  b.z = b.streams.normal(Purpose::kPrior, 0, 1, 0, o.n, {noise_size(base)});
  if (base.classes() > 0) b.labels = at::remainder(at::arange(o.n, at::kLong), base.classes());
  return b;
}

// What was measured of every name, in the order of the entries.
struct MeasuredGenerators {
  std::vector<std::string> names;
  std::map<std::string, std::vector<Figures>> figures;
  std::map<std::string, at::Tensor> samples;  // of the first repetition
};

// Every entry in turn; the first one is the base, whose images the others are compared with.
MeasuredGenerators measure_entries(
    Bench& b, const Generator& base,
    const std::function<std::shared_ptr<const Generator>(const GeneratorEntry&)>& open) {
  const GeneratorComparisonOptions& o = b.options;
  MeasuredGenerators out;
  for (std::size_t i = 0; i < o.entries.size(); ++i) {
    const GeneratorEntry& entry = o.entries[i];
    const std::shared_ptr<const Generator> g = open(entry);
    if (g->sample_shape() != base.sample_shape() || noise_size(*g) != noise_size(base) ||
        g->classes() != base.classes()) {
      fail(ErrorKind::kConfig,
           cat(entry.file.string(), " takes other noise or makes other samples than ",
               o.entries.front().file.string()));
    }
    const std::filesystem::path folder = entry.pairs.empty() ? o.pairs : entry.pairs;
    at::Tensor images;
    Figures figures = measure(
        b, *g, folder.empty() ? std::nullopt : std::optional(read_assigned(folder)), images);
    if (i == 0) b.base_images = images;
    if (out.figures[entry.name].empty()) {
      out.names.push_back(entry.name);
      out.samples[entry.name] = images;
    }
    out.figures[entry.name].push_back(std::move(figures));
    if (o.progress) {
      o.progress(static_cast<std::int64_t>(i) + 1, static_cast<std::int64_t>(o.entries.size()));
    }
  }
  return out;
}

// Real pictures on the same scales: training pictures against held-out ones. `columns`: the
// figures that the table shows.
ComparedGenerator real_pictures(const Bench& b, const Generator& base, const Figures& columns) {
  TargetsConfig training = b.config.targets;
  training.first = 0;
  training.count = b.options.n;
  const AssignTargets train = read_targets(training, base);
  ComparedGenerator row{"real pictures", 1, {}, (train.images + 1) / 2};
  const Figures own = random_figures(b, row.samples, train.labels);
  for (const auto& [name, value] : columns) {
    const auto found = std::find_if(own.begin(), own.end(),
                                    [&, key = name](const auto& f) { return f.first == key; });
    row.figures.emplace_back(name, found == own.end() ? std::nullopt : found->second);
  }
  return row;
}

double variance_figure(const Figures& figures) {
  for (const auto& [name, value] : figures) {
    if (name == "variance within classes") return value->value;
  }
  return 0;
}

}  // namespace

GeneratorComparison compare_generators(const OneStepConfig& config,
                                       const GeneratorComparisonOptions& o) {
  if (o.entries.empty()) {
    fail(ErrorKind::kConfig, "nothing to compare", "give generators as NAME=FILE, the base first");
  }
  if (config.targets.format == "pairs") {
    fail(ErrorKind::kConfig, "a list of pairs has no test split to compare on",
         "use targets.format idx, cifar or folder");
  }
  const ModelRuntime runtime = apply(config.compute);
  const auto open = [&](const GeneratorEntry& entry) -> std::shared_ptr<const Generator> {
    return open_generator_file(config.generator, entry.file, "", runtime);
  };
  const auto base = open(o.entries.front());
  Bench b = prepare_bench(config, o, *base);
  MeasuredGenerators measured = measure_entries(b, *base, open);
  GeneratorComparison out;
  out.judge = o.judge;
  out.n = o.n;
  out.held_out = o.held_out;
  out.rows.push_back(real_pictures(b, *base, measured.figures[measured.names.front()].front()));
  for (const std::string& name : measured.names) {
    const std::vector<Figures>& repetitions = measured.figures[name];
    out.rows.push_back({name, static_cast<std::int64_t>(repetitions.size()),
                        over_repetitions(repetitions), measured.samples[name]});
    if (variance_figure(out.rows.back().figures) < 0.5 * variance_figure(out.rows[1].figures)) {
      out.collapsed.push_back(name);
    }
  }
  return out;
}

namespace {

TextTable cells(const GeneratorComparison& c) {
  TextTable out{{"generator", "runs"}};
  for (const auto& [name, value] : c.rows.front().figures) out[0].push_back(name);
  for (const ComparedGenerator& row : c.rows) {
    out.push_back({row.name, cat(row.repetitions)});
    for (const auto& [name, value] : row.figures) out.back().push_back(show(value));
  }
  return out;
}

std::string conclusion(const GeneratorComparison& c) {
  return c.collapsed.empty()
             ? "No generator has lost half of the base's variance within classes.\n"
             : cat("Collapsed (less than half of the base's variance within classes): ",
                   join(c.collapsed, ", "), ".\n");
}

}  // namespace

std::string table_text(const GeneratorComparison& c) {
  return cat(c.n, " random samples, the same noise and labels for all; ", c.held_out,
             " held-out targets; judge ", c.judge.empty() ? "none" : c.judge, "\n",
             aligned_text(cells(c)), conclusion(c));
}

namespace {

std::string unit_of_figure(const std::string& name) {
  static const std::map<std::string, std::string> units{
      {"matched error", "mean square"},
      {"held-out error", "mean square"},
      {"class accuracy", "share"},
      {"Frechet", "squared distance of judge features"},
      {"variance within classes", "relative to real pictures"},
      {"distance to base", "mean square"}};
  const auto known = units.find(name);
  return known == units.end() ? "" : known->second;
}

// One figure of every row as marks with error bars, the generators in the order of the table and in
// one colour each.
Chart chart_of(const GeneratorComparison& c, std::size_t figure) {
  const std::string name = c.rows.front().figures[figure].first;
  Chart chart{name, {"row of the table"}, {name, unit_of_figure(name)}};
  chart.marks = true;
  for (std::size_t i = 0; i < c.rows.size(); ++i) {
    const std::optional<Estimate> e = c.rows[i].figures[figure].second;
    Series one{c.rows[i].name};
    if (e) one = {c.rows[i].name, {static_cast<double>(i + 1)}, {e->value}, {e->se}};
    chart.series.push_back(std::move(one));
  }
  return chart;
}

std::string samples_html(const GeneratorComparison& c) {
  constexpr std::int64_t kShown = 40;
  constexpr int kColumns = 10;
  std::string out;
  for (const ComparedGenerator& row : c.rows) {
    const at::Tensor shown = row.samples.narrow(0, 0, std::min(kShown, row.samples.size(0)));
    if (shown.dim() != 4 || !is_picture(shown.sizes().slice(1))) continue;
    out += picture_figure(encode_png(image_grid(shown, kColumns)), row.name);
  }
  return out.empty() ? "" : "<h2>Samples from the same noise</h2>" + figure_grid(out);
}

}  // namespace

std::string to_html(const GeneratorComparison& c) {
  const std::string verdict = cat("<p class=\"verdict ", c.collapsed.empty() ? "" : "bad", "\">",
                                  xml_text(conclusion(c)), "</p>");
  const std::string text =
      cat("<p>", c.n,
          " random samples, the same noise and labels for all generators; noise assigned anew for ",
          c.held_out, " held-out targets; judge ", c.judge.empty() ? "none" : xml_text(c.judge),
          ". Errors are mean squares of pictures in [-1, 1]; the variance within classes is "
          "relative to real pictures. "
          "Standard errors are over runs where there are several, else over samples.</p>");
  std::vector<Chart> charts;
  for (std::size_t i = 0; i < c.rows.front().figures.size(); ++i) charts.push_back(chart_of(c, i));
  return html_page("tiltflow: one-step generators",
                   cat("<h1>One-step generators</h1>", verdict, text,
                       html_table(cells(c), "figures of every generator"), samples_html(c),
                       "<h2>Figures</h2>", chart_figures(charts)));
}

nlohmann::ordered_json to_json(const GeneratorComparison& c) {
  nlohmann::ordered_json out{{"judge", c.judge},
                             {"samples", c.n},
                             {"held_out", c.held_out},
                             {"collapsed", c.collapsed},
                             {"rows", nlohmann::ordered_json::array()}};
  for (const ComparedGenerator& row : c.rows) {
    nlohmann::ordered_json one{{"generator", row.name}, {"runs", row.repetitions}};
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
