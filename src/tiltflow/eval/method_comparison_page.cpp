#include "tiltflow/eval/method_comparison_page.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "tiltflow/base/file.h"
#include "tiltflow/base/hash.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/eval/html.h"
#include "tiltflow/eval/svg.h"
#include "tiltflow/eval/table.h"
#include "tiltflow/io/safetensors.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

namespace fs = std::filesystem;

std::vector<const ComparedRun*> runs_of(const Comparison& c, const std::string& method, double scale, bool timed) {
  std::vector<const ComparedRun*> out;
  for (const ComparedRun& run : c.runs) if (run.method == method && run.scale == scale && run.timed == timed && is_done(run.status)) out.push_back(&run);
  return out;
}

// Mean over seeds with its standard error; a single value keeps the error it was measured with.
std::optional<Estimate> over_seeds(const std::vector<Estimate>& values) {
  std::vector<double> v;
  for (const Estimate& e : values) if (std::isfinite(e.value)) v.push_back(e.value);
  if (v.empty()) return std::nullopt;
  if (v.size() == 1) return values[0];
  return mean_estimate(at::tensor(v, at::kDouble));
}

std::optional<Estimate> figure(const std::vector<const ComparedRun*>& runs, const std::string& name) {
  std::vector<Estimate> values;
  for (const ComparedRun* run : runs) for (const auto& [key, e] : run->figures.figures) if (key == name) values.push_back(e);
  return over_seeds(values);
}

double base_reward(const Comparison& c) { return c.base.find("reward"); }

// Where a curve first reaches `level`, by straight lines between evaluations; nothing when it never does.
std::optional<double> reached(const std::vector<CurvePoint>& curve, double level, double CurvePoint::*axis) {
  for (std::size_t i = 0; i < curve.size(); ++i) {
    if (curve[i].reward < level) continue;
    if (i == 0) return curve[0].*axis;
    const double part = (level - curve[i - 1].reward) / (curve[i].reward - curve[i - 1].reward);
    return curve[i - 1].*axis + part * (curve[i].*axis - curve[i - 1].*axis);
  }
  return std::nullopt;
}

std::string time_to(const std::vector<const ComparedRun*>& runs, double level, double CurvePoint::*axis) {
  std::vector<Estimate> values;
  for (const ComparedRun* run : runs) if (const auto t = reached(run->figures.curve, level, axis)) values.push_back({*t, 0});
  if (values.empty()) return "not reached";
  const std::string text = show(over_seeds(values));
  return values.size() == runs.size() ? text : cat(text, " (", values.size(), " of ", runs.size(), ")");
}

TextTable table_of_scale(const Comparison& c, double scale, bool timed) {
  std::vector<std::string> names{"reward"};
  for (const ComparedRun& run : c.runs) for (const auto& [key, e] : run.figures.figures) if (std::find(names.begin(), names.end(), key) == names.end()) names.push_back(key);
  double best = base_reward(c);
  for (const ComparedMethod& m : c.recipe.run) if (const auto r = figure(runs_of(c, m.name, scale, timed), "reward")) best = std::max(best, r->value);
  const double level = base_reward(c) + c.recipe.reach * (best - base_reward(c));
  TextTable table(1);
  table[0].push_back("method");
  for (const std::string& name : names) table[0].push_back(name == "control cost" || name == "gap" ? name + " (nats)" : name);
  for (const char* name : {"steps", "evaluations", "seconds"}) table[0].push_back(name);
  table[0].push_back(cat("evaluations to reward ", compact(level, 3)));
  table[0].push_back("seconds to it");
  std::vector<std::string> base{"base"};
  for (const std::string& name : names) {
    std::optional<Estimate> e;
    for (const auto& [key, value] : c.base.figures) if (key == name) e = value;
    base.push_back(show(e));
  }
  base.resize(table[0].size(), "-");
  table.push_back(base);
  for (const ComparedMethod& m : c.recipe.run) {
    const auto runs = runs_of(c, m.name, scale, timed);
    std::vector<std::string> row{m.name};
    if (runs.empty()) {
      for (const ComparedRun& run : c.runs) if (run.method == m.name && run.scale == scale && run.timed == timed && row.size() < 2) row.push_back(run.status.substr(0, 160));
      row.resize(table[0].size(), "");
      table.push_back(row);
      continue;
    }
    if (runs.size() < c.recipe.seeds.size()) row[0] += cat(" (", runs.size(), " of ", c.recipe.seeds.size(), " runs)");
    for (const std::string& name : names) row.push_back(show(figure(runs, name)));
    const auto mean_of = [&](double ModelFigures::*member) {
      double sum = 0;
      for (const ComparedRun* run : runs) sum += run->figures.*member;
      return sum / static_cast<double>(runs.size());
    };
    row.push_back(compact(mean_of(&ModelFigures::steps), 4)), row.push_back(compact(mean_of(&ModelFigures::evaluations), 3)), row.push_back(compact(mean_of(&ModelFigures::seconds), 3));
    row.push_back(time_to(runs, level, &CurvePoint::evaluations)), row.push_back(time_to(runs, level, &CurvePoint::seconds));
    table.push_back(row);
  }
  return table;
}

std::string markdown(const TextTable& table) {
  std::string out;
  for (std::size_t i = 0; i < table.size(); ++i) {
    out += "|";
    for (const std::string& cell : table[i]) out += cat(" ", cell, " |");
    out += "\n";
    if (i == 0) out += "|" + [&] { std::string line; for (std::size_t j = 0; j < table[0].size(); ++j) line += "---|"; return line; }() + "\n";
  }
  return out;
}

// One line a method through its scales.
Chart trade_off(const Comparison& c, const std::string& x, bool timed) {
  Chart chart{cat("reward against ", x), x, "reward", {}, false};
  chart.marks = true;
  chart.log_x = x == "control cost";  // from a tenth of a nat to what runs away
  for (const ComparedMethod& m : c.recipe.run) {
    Series line;
    line.name = m.name;
    std::vector<double> scales = c.recipe.scales;
    std::sort(scales.begin(), scales.end());
    for (const double scale : scales) {
      const auto runs = runs_of(c, m.name, scale, timed);
      const auto across = figure(runs, x), reward = figure(runs, "reward");
      if (across && reward) line.x.push_back(across->value), line.y.push_back(reward->value), line.error.push_back(reward->se);
    }
    chart.series.push_back(std::move(line));
  }
  const double at_base = c.base.find(x);  // no control cost: outside a logarithmic axis
  if (std::isfinite(at_base)) chart.series.push_back({"base", {at_base}, {base_reward(c)}, {0}, false, true});
  return chart;
}

// Mean reward over seeds on the way; seeds share their evaluation steps.
Chart curves(const Comparison& c, double scale, bool timed, double CurvePoint::*axis, const std::string& label) {
  Chart chart{cat("reward against ", label, ", scale ", compact(scale)), label, "reward", {}, false};
  for (const ComparedMethod& m : c.recipe.run) {
    const auto runs = runs_of(c, m.name, scale, timed);
    Series line;
    line.name = m.name;
    for (std::size_t i = 0; !runs.empty() && i < runs[0]->figures.curve.size(); ++i) {
      std::vector<Estimate> rewards;
      double place = 0;
      for (const ComparedRun* run : runs) if (i < run->figures.curve.size()) rewards.push_back({run->figures.curve[i].reward, 0}), place += run->figures.curve[i].*axis;
      const auto e = over_seeds(rewards);
      if (e) line.x.push_back(place / static_cast<double>(rewards.size())), line.y.push_back(e->value), line.error.push_back(e->se);
    }
    chart.series.push_back(std::move(line));
  }
  return chart;
}

// A picture, or points in the plane on the axes of `frame`, [n, 2] (undefined: their own).
std::string picture(const fs::path& stem, const std::string& caption, const at::Tensor& frame) {
  const fs::path png = fs::path(stem).replace_extension(".png"), points = fs::path(stem).replace_extension(".safetensors");
  if (fs::exists(png)) return cat("<figure><img alt='", html_escape(caption), "' src='data:image/png;base64,", base64(read_file(png)), "'/><figcaption>", html_escape(caption), "</figcaption></figure>");
  if (!fs::exists(points)) return "";
  const at::Tensor x = read_safetensors(points).tensors.at("points").to(at::kDouble).contiguous();
  if (x.size(1) != 2) return "";
  Chart chart{caption, "", "", {}, false};
  chart.marks = true, chart.lines = false;
  if (frame.defined()) {
    const auto range = [&](std::int64_t i) { return std::vector<double>{frame.select(1, i).min().item<double>(), frame.select(1, i).max().item<double>()}; };
    chart.x_range = range(0), chart.y_range = range(1);
  }
  Series s;
  for (std::int64_t i = 0; i < x.size(0); ++i) s.x.push_back(x[i][0].item<double>()), s.y.push_back(x[i][1].item<double>());
  chart.series.push_back(std::move(s));
  return cat("<figure>", svg_chart(chart), "</figure>");
}

}  // namespace

void write_comparison_page(const Comparison& c, const fs::path& out) {
  const std::string title = c.recipe.title.empty() ? "Methods compared" : c.recipe.title;
  std::string html = cat("<h1>", html_escape(title), "</h1>"), text = cat("# ", title, "\n");
  std::size_t done = 0;
  for (const ComparedRun& run : c.runs) done += is_done(run.status) ? 1 : 0;
  const std::string intro = cat(done, " of ", c.runs.size(), " runs done; ", c.recipe.seeds.size() > 1 ? cat("mean +- standard error over ", c.recipe.seeds.size(), " seeds") : std::string("one seed, +- standard error over samples"), ". Rewards are in units of the task's own scale; control cost is the KL of the tuned chain against the base's, gap its KL against the tilted law of the run's scale. Measured on ", c.recipe.samples, " samples of the memoryless sampler from the same noise for all.");
  html += cat("<p>", html_escape(intro), "</p>"), text += cat("\n", intro, "\n");
  at::Tensor frame;  // all points are shown on the base's axes
  if (const fs::path points = out / "base.safetensors"; fs::exists(points)) frame = read_safetensors(points).tensors.at("points").to(at::kDouble);
  const double top = *std::max_element(c.recipe.scales.begin(), c.recipe.scales.end());
  for (const bool timed : {false, true}) {
    if (timed ? c.recipe.seconds <= 0 : c.recipe.evaluations <= 0) continue;
    const std::string budget = timed ? cat("Equal time: ", compact(c.recipe.seconds), " s of training a run") : cat("Equal cost: ", compact(c.recipe.evaluations), " network evaluations a run");
    html += cat("<h2>", budget, "</h2>"), text += cat("\n## ", budget, "\n");
    for (const double scale : c.recipe.scales) {
      const TextTable table = table_of_scale(c, scale, timed);
      html += cat("<h3>Reward scale x ", compact(scale), "</h3>", html_table(table)), text += cat("\nReward scale x ", compact(scale), "\n\n", markdown(table));
    }
    std::vector<Chart> charts;
    for (const char* x : {"control cost", "diversity", "Frechet distance"}) charts.push_back(trade_off(c, x, timed));
    for (const RewardTerm& term : c.recipe.held_out) charts.push_back(trade_off(c, "held out: " + term.name, timed));
    charts.push_back(curves(c, top, timed, &CurvePoint::evaluations, "network evaluations"));
    charts.push_back(curves(c, top, timed, &CurvePoint::seconds, "seconds"));
    for (const Chart& chart : charts) if (const std::string svg = svg_chart(chart); !svg.empty()) html += cat("<figure>", svg, "</figure>");
    html += cat("<h3>Samples from the same noise, scale x ", compact(top), "</h3>", picture(out / "base", "base", frame));
    for (const ComparedMethod& m : c.recipe.run) {
      const auto runs = runs_of(c, m.name, top, timed);
      if (!runs.empty()) html += picture(out / runs[0]->folder / "measured", m.name, frame);
    }
  }
  html += "<h2>Runs</h2><ul>";
  for (const ComparedRun& run : c.runs) html += is_done(run.status) ? cat("<li><a href='", html_escape(run.folder), "/report.html'>", html_escape(run.folder), "</a></li>") : cat("<li>", html_escape(run.folder), ": ", html_escape(run.status), "</li>");
  html += "</ul>";
  write_file_atomic(out / "compare.html", html_page(title, html));
  write_file_atomic(out / "compare.md", text);
}

}  // namespace tiltflow
