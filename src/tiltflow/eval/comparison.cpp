#include "tiltflow/eval/comparison.h"

#include <cmath>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/eval/html.h"
#include "tiltflow/io/dataset.h"
#include "tiltflow/io/json_lines.h"
#include "tiltflow/io/safetensors.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/train/finetuning.h"

namespace tiltflow {
namespace {

struct RealImages {
  at::Tensor features;  // undefined when only moments are known
  std::optional<FeatureMoments> moments;
};

RealImages real_images(const ComparisonOptions& o, const FeatureNetwork& network) {
  RealImages out;
  if (!o.reference.empty()) {
    const ParameterSet t = read_safetensors(o.reference).tensors;
    for (const char* name : {"mean", "covariance", "count"}) if (!t.contains(name)) fail(ErrorKind::kBadFile, cat(o.reference, ": no feature moments ('", name, "' is missing)"));
    out.moments = FeatureMoments{t.at("mean").to(at::kDouble), t.at("covariance").to(at::kDouble), t.at("count").item<double>()};
  }
  if (o.data.empty()) return out;
  const ImageDataset data = read_dataset(o.format, o.data, "test");
  const std::int64_t used = std::min<std::int64_t>(data.size(), 10000);
  out.features = features_of(network, data.batch(at::arange(used)));
  if (!out.moments) out.moments = feature_moments(out.features);
  return out;
}

// Over seeds when there are several: their scatter contains what differs between runs of the sampler.
Estimate over_seeds(const std::vector<at::Tensor>& rewards) {
  if (rewards.size() < 2) return mean_estimate(rewards[0]);
  std::vector<double> means;
  for (const at::Tensor& r : rewards) means.push_back(r.mean().item<double>());
  const Estimate e = mean_estimate(at::tensor(means, at::kDouble)), pooled = mean_estimate(at::cat(rewards));
  return {e.value, std::max(e.se, pooled.se)};  // two or three seeds may agree by chance
}

}  // namespace

Comparison compare_models(const std::filesystem::path& run, const ComparisonOptions& o) {
  const FinetuneConfig config = load_config<FinetuneConfig>(run / "config.toml", {});
  const FinetuneSetup setup = set_up(config);
  FlowModelConfig file;
  file.file = (run / "model.safetensors").string();
  const FlowModel tuned = load_flow_model(file, apply(config.compute));
  const std::int64_t classes = setup.flow.model->classes();
  if (o.guidance != 1 && (config.labels.kind == "none" || classes == 0)) fail(ErrorKind::kUsage, "guidance needs a run with labels");
  const FeatureNetwork network = make_feature_network(o.features);
  const RealImages real = real_images(o, network);
  SamplerConfig ode = setup.config.sampler;
  ode.name = config.check.ode.empty() ? "ode-heun" : config.check.ode, ode.steps = config.check.ode_steps;
  std::vector<double> scales{1};
  if (o.guidance != 1) scales.push_back(o.guidance);

  Comparison out;
  out.run = run.string(), out.features = network.name, out.samples = o.n * o.seeds;
  const std::int64_t total = 4 * static_cast<std::int64_t>(scales.size()) * o.n * o.seeds;
  std::int64_t before = 0;
  for (const double scale : scales) {
    const auto base = guided(setup.flow.model, {scale}, classes);
    for (const SamplerConfig& sampler : {setup.config.sampler, ode}) {
      for (const bool is_tuned : {false, true}) {
        const auto field = is_tuned ? guided(tuned.model, {scale}, classes) : base;
        std::vector<at::Tensor> rewards, features, costs;
        for (std::int64_t seed = 1; seed <= o.seeds; ++seed) {  // the same noise and labels for every row
          const RandomStreams streams(static_cast<std::uint64_t>(config.seed + seed));
          DrawOptions options;
          options.n = o.n;
          if (is_tuned && !is_ode(sampler)) options.reference = base.get();
          options.progress = [&](std::int64_t done) { if (o.progress) o.progress(before + done, total); };
          const Draws draws = draw(*field, sampler, *setup.flow.path, setup.flow.model->sample_shape(), streams, make_labels(setup.config.labels, classes, streams, 0, 0), options);
          before += o.n;
          rewards.push_back(setup.reward->score(draws.x, draws.labels).to(at::kDouble));
          const at::NoGradGuard no_grad;
          features.push_back(features_of(network, setup.reward->decode(draws.x).clamp(0, 1)));
          if (draws.cost.defined()) costs.push_back(draws.cost);
        }
        const at::Tensor all = at::cat(features);
        ComparedModel row{is_tuned ? "tuned" : "base", sampler.name, scale, {}};
        const auto add = [&](const char* name, std::optional<Estimate> value) { row.figures.emplace_back(name, value); };
        add("reward", over_seeds(rewards));
        add("control cost (nats)", costs.empty() ? std::nullopt : std::optional(mean_estimate(at::cat(costs).to(at::kDouble))));
        add("diversity", diversity(all));
        if (real.moments) {
          add("Frechet", Estimate{frechet_distance(feature_moments(all), *real.moments), 0});
          add("Frechet, extrapolated", all.size(0) >= 100 ? std::optional(frechet_extrapolated(all, *real.moments, setup.streams)) : std::nullopt);
        }
        if (real.features.defined()) {
          const PrecisionRecall pr = precision_recall(all, real.features.narrow(0, 0, std::min(all.size(0), real.features.size(0))));
          add("precision", pr.precision), add("recall", pr.recall);
        }
        out.rows.push_back(std::move(row));
      }
    }
  }
  return out;
}

namespace {

std::string show(const std::optional<Estimate>& e) { return !e ? "-" : e->se > 0 ? cat(compact(e->value), " +- ", compact(e->se, 2)) : compact(e->value); }

std::vector<std::vector<std::string>> cells(const Comparison& c) {
  std::vector<std::vector<std::string>> out{{"model", "sampler", "guidance"}};
  for (const auto& [name, value] : c.rows.front().figures) out[0].push_back(name);
  for (const ComparedModel& row : c.rows) {
    out.push_back({row.model, row.sampler, compact(row.guidance)});
    for (const auto& [name, value] : row.figures) out.back().push_back(show(value));
  }
  return out;
}

}  // namespace

std::string table_text(const Comparison& c) {
  const auto table = cells(c);
  std::string out = cat("features: ", c.features, "; ", c.samples, " samples a row\n");
  std::vector<std::size_t> width(table[0].size(), 0);
  for (const auto& row : table) for (std::size_t j = 0; j < row.size(); ++j) width[j] = std::max(width[j], row[j].size());
  for (const auto& row : table) {
    for (std::size_t j = 0; j < row.size(); ++j) out += (j ? "  " : "") + pad_right(row[j], width[j]);
    out += "\n";
  }
  return out;
}

std::string to_csv(const Comparison& c) {
  std::string out = "model,sampler,guidance";
  for (const auto& [name, value] : c.rows.front().figures) out += cat(",\"", name, "\",\"", name, " se\"");
  out += "\n";
  for (const ComparedModel& row : c.rows) {
    out += cat(row.model, ",", row.sampler, ",", compact(row.guidance, 9));
    for (const auto& [name, value] : row.figures) out += value ? cat(",", compact(value->value, 9), ",", compact(value->se, 9)) : ",,";
    out += "\n";
  }
  return out;
}

std::string to_html(const Comparison& c) {
  std::string body = cat("<h1>Base and tuned: ", html_escape(c.run), "</h1><p>Features: ", html_escape(c.features), "; ", c.samples, " samples a row, the same noise and labels in all of them.</p><table>");
  bool head = true;
  for (const auto& row : cells(c)) {
    body += "<tr>";
    for (const std::string& cell : row) body += cat(head ? "<th>" : "<td>", html_escape(cell), head ? "</th>" : "</td>");
    body += "</tr>", head = false;
  }
  return html_page("tiltflow: base and tuned", body + "</table>");
}

nlohmann::ordered_json to_json(const Comparison& c) {
  nlohmann::ordered_json out{{"run", c.run}, {"features", c.features}, {"samples", c.samples}, {"rows", nlohmann::ordered_json::array()}};
  for (const ComparedModel& row : c.rows) {
    nlohmann::ordered_json one{{"model", row.model}, {"sampler", row.sampler}, {"guidance", row.guidance}};
    for (const auto& [name, value] : row.figures) one[name] = value ? nlohmann::ordered_json{{"value", json_number(value->value)}, {"se", json_number(value->se)}} : nlohmann::ordered_json();
    out["rows"].push_back(std::move(one));
  }
  return out;
}

}  // namespace tiltflow
