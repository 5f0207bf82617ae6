#include "tiltflow/eval/method_comparison_page.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "tiltflow/base/file.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/safetensors.h"
#include "tiltflow/report/html.h"
#include "tiltflow/report/svg_text.h"
#include "tiltflow/report/table.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

namespace fs = std::filesystem;

std::vector<const ComparedRun*> runs_of(const Comparison& c, const std::string& method,
                                        double scale, bool timed) {
  std::vector<const ComparedRun*> out;
  for (const ComparedRun& run : c.runs) {
    if (run.method == method && run.scale == scale && run.timed == timed && is_done(run.status)) {
      out.push_back(&run);
    }
  }
  return out;
}

// Mean over seeds with its standard error; a single value keeps the error it was measured with.
std::optional<Estimate> over_seeds(const std::vector<Estimate>& values) {
  std::vector<double> v;
  for (const Estimate& e : values) {
    if (std::isfinite(e.value)) v.push_back(e.value);
  }
  if (v.empty()) return std::nullopt;
  if (v.size() == 1) return values[0];
  return mean_estimate(at::tensor(v, at::kDouble));
}

std::optional<Estimate> figure(const std::vector<const ComparedRun*>& runs,
                               const std::string& name) {
  std::vector<Estimate> values;
  for (const ComparedRun* run : runs) {
    for (const auto& [key, e] : run->figures.figures) {
      if (key == name) values.push_back(e);
    }
  }
  return over_seeds(values);
}

double base_reward(const Comparison& c) { return c.base.find("reward"); }

// Where a curve first reaches `level`, by straight lines between evaluations; nothing when it never
// does.
std::optional<double> reached(const std::vector<CurvePoint>& curve, double level,
                              double CurvePoint::* axis) {
  for (std::size_t i = 0; i < curve.size(); ++i) {
    if (curve[i].reward < level) continue;
    if (i == 0) return curve[0].*axis;
    const double part = (level - curve[i - 1].reward) / (curve[i].reward - curve[i - 1].reward);
    return curve[i - 1].*axis + part * (curve[i].*axis - curve[i - 1].*axis);
  }
  return std::nullopt;
}

std::string time_to(const std::vector<const ComparedRun*>& runs, double level,
                    double CurvePoint::* axis) {
  std::vector<Estimate> values;
  for (const ComparedRun* run : runs) {
    if (const auto t = reached(run->figures.curve, level, axis)) values.push_back({*t, 0});
  }
  if (values.empty()) return "not reached";
  const std::string text = show(over_seeds(values));
  return values.size() == runs.size() ? text
                                      : cat(text, " (", values.size(), " of ", runs.size(), ")");
}

// Why a method has no finished run: the first error, or "".
std::string failure_of(const Comparison& c, const std::string& method, double scale, bool timed) {
  for (const ComparedRun& run : c.runs) {
    const bool meant = run.method == method && run.scale == scale && run.timed == timed;
    if (meant && !is_done(run.status) && run.status != "not begun") return run.status;
  }
  return "";
}

// What failed and why, one line a method: "name: reason".
std::vector<std::string> failures_of(const Comparison& c, double scale, bool timed) {
  std::vector<std::string> out;
  for (const ComparedMethod& m : c.recipe.run) {
    if (!runs_of(c, m.name, scale, timed).empty()) continue;
    if (const std::string reason = failure_of(c, m.name, scale, timed); !reason.empty()) {
      out.push_back(cat(m.name, ": ", reason.substr(0, 300)));
    }
  }
  return out;
}

TextTable table_of_scale(const Comparison& c, double scale, bool timed) {
  std::vector<std::string> names{"reward"};
  for (const ComparedRun& run : c.runs) {
    for (const auto& [key, e] : run.figures.figures) {
      if (std::find(names.begin(), names.end(), key) == names.end()) names.push_back(key);
    }
  }
  double best = base_reward(c);
  for (const ComparedMethod& m : c.recipe.run) {
    if (const auto r = figure(runs_of(c, m.name, scale, timed), "reward")) {
      best = std::max(best, r->value);
    }
  }
  const double level = base_reward(c) + c.recipe.reach * (best - base_reward(c));
  TextTable table(1);
  table[0].push_back("method");
  for (const std::string& name : names) {
    table[0].push_back(name == "control cost" || name == "gap" ? name + " (nats)" : name);
  }
  for (const char* name : {"steps", "evaluations", "seconds"}) table[0].push_back(name);
  table[0].push_back(cat("evaluations to reward ", compact(level, 3)));
  table[0].push_back("seconds to it");
  std::vector<std::string> base{"base"};
  for (const std::string& name : names) {
    std::optional<Estimate> e;
    for (const auto& [key, value] : c.base.figures) {
      if (key == name) e = value;
    }
    base.push_back(show(e));
  }
  base.resize(table[0].size(), "-");
  table.push_back(base);
  for (const ComparedMethod& m : c.recipe.run) {
    const auto runs = runs_of(c, m.name, scale, timed);
    std::vector<std::string> row{m.name};
    if (runs.empty()) {
      row.push_back(failure_of(c, m.name, scale, timed).empty() ? "not begun" : "failed");
      row.resize(table[0].size(), "-");
      table.push_back(row);
      continue;
    }
    if (runs.size() < c.recipe.seeds.size()) {
      row[0] += cat(" (", runs.size(), " of ", c.recipe.seeds.size(), " runs)");
    }
    for (const std::string& name : names) row.push_back(show(figure(runs, name)));
    const auto mean_of = [&](double ModelFigures::* member) {
      double sum = 0;
      for (const ComparedRun* run : runs) sum += run->figures.*member;
      return sum / static_cast<double>(runs.size());
    };
    row.push_back(compact(mean_of(&ModelFigures::steps), 4));
    row.push_back(compact(mean_of(&ModelFigures::evaluations), 3));
    row.push_back(compact(mean_of(&ModelFigures::seconds), 3));
    row.push_back(time_to(runs, level, &CurvePoint::evaluations));
    row.push_back(time_to(runs, level, &CurvePoint::seconds));
    table.push_back(row);
  }
  return table;
}

std::string unit_of(const std::string& figure) { return figure == "control cost" ? "nats" : ""; }

// One line a method through its scales.
Chart trade_off(const Comparison& c, const std::string& x, bool timed) {
  Chart chart{cat("Reward against ", x), {x, unit_of(x)}, {"mean reward", "unscaled"}};
  chart.marks = true;
  chart.x.logarithmic = x == "control cost";  // from a tenth of a nat to what runs away
  std::vector<double> scales = c.recipe.scales;
  std::sort(scales.begin(), scales.end());
  for (const ComparedMethod& m : c.recipe.run) {
    Series line{m.name};
    for (const double scale : scales) {
      const auto runs = runs_of(c, m.name, scale, timed);
      const auto across = figure(runs, x);
      const auto reward = figure(runs, "reward");
      if (!across || !reward) continue;
      line.x.push_back(across->value);
      line.x_error.push_back(across->se);
      line.y.push_back(reward->value);
      line.error.push_back(reward->se);
    }
    chart.series.push_back(std::move(line));
  }
  const double at_base = c.base.find(x);  // no control cost: outside a logarithmic axis
  if (std::isfinite(at_base)) chart.series.push_back({"base", {at_base}, {base_reward(c)}});
  if (scales.size() > 1) {
    std::vector<std::string> names;
    for (const double scale : scales) names.push_back(compact(scale));
    chart.note = cat("Along a line: reward scales × ", join(names, ", × "), ".");
  }
  return chart;
}

// Mean reward over seeds on the way; seeds share their evaluation steps.
Chart curves(const Comparison& c, double scale, bool timed, double CurvePoint::* axis,
             const AxisLabel& label) {
  Chart chart{cat("Reward against ", label.text, ", scale × ", compact(scale)),
              label,
              {"mean reward", "unscaled"}};
  for (const ComparedMethod& m : c.recipe.run) {
    const auto runs = runs_of(c, m.name, scale, timed);
    Series line{m.name};
    for (std::size_t i = 0; !runs.empty() && i < runs[0]->figures.curve.size(); ++i) {
      std::vector<Estimate> rewards;
      double place = 0;
      for (const ComparedRun* run : runs) {
        if (i >= run->figures.curve.size()) continue;
        rewards.push_back({run->figures.curve[i].reward, 0});
        place += run->figures.curve[i].*axis;
      }
      const auto e = over_seeds(rewards);
      if (!e) continue;
      line.x.push_back(place / static_cast<double>(rewards.size()));
      line.y.push_back(e->value);
      line.error.push_back(e->se);
    }
    chart.series.push_back(std::move(line));
  }
  return chart;
}

// Points in the plane on the axes of `frame`, [n, 2].
Chart cloud(const std::string& name, const at::Tensor& points, const at::Tensor& frame) {
  const at::Tensor x = points.to(at::kDouble).contiguous();
  const auto range = [&](std::int64_t i) {
    return std::vector<double>{frame.select(1, i).min().item<double>(),
                               frame.select(1, i).max().item<double>()};
  };
  const auto column = [&](std::int64_t i) {
    const at::Tensor one = x.select(1, i).contiguous();
    return std::vector<double>(one.data_ptr<double>(), one.data_ptr<double>() + one.numel());
  };
  Chart chart{name, {"x0"}, {"x1"}, {{"", column(0), column(1)}}};
  chart.lines = false;
  chart.x.range = range(0);
  chart.y.range = range(1);
  return chart;
}

// Samples of the base and of every method: pictures, or points on the base's axes.
std::string samples_html(const Comparison& c, const fs::path& out, double scale, bool timed) {
  std::vector<std::pair<std::string, fs::path>> shown{{"base", out / "base"}};
  for (const ComparedMethod& m : c.recipe.run) {
    const auto runs = runs_of(c, m.name, scale, timed);
    if (!runs.empty()) shown.emplace_back(m.name, out / runs[0]->folder / "measured");
  }
  at::Tensor frame;
  std::string pictures;
  std::vector<Chart> clouds;
  for (const auto& [name, stem] : shown) {
    const fs::path png = fs::path(stem).replace_extension(".png");
    const fs::path points = fs::path(stem).replace_extension(".safetensors");
    if (fs::exists(png)) pictures += picture_figure(read_file(png), name);
    if (!fs::exists(points)) continue;
    const at::Tensor x = read_safetensors(points).tensors.at("points");
    if (x.size(1) != 2) continue;
    if (!frame.defined()) frame = x;
    clouds.push_back(cloud(name, x, frame));
  }
  if (pictures.empty() && clouds.empty()) return "";
  const std::string note =
      pictures.empty()
          ? ""
          : "<p class=\"soft\">Pictures show samples without the noise that the sampler's last "
            "step leaves in them; every number is of the samples themselves.</p>";
  return cat("<h3>Samples from the same noise, scale × ", compact(scale), "</h3>", note,
             figure_grid(pictures), chart_figures(clouds));
}

std::string intro_of(const Comparison& c) {
  const auto done = std::count_if(c.runs.begin(), c.runs.end(),
                                  [](const ComparedRun& run) { return is_done(run.status); });
  const std::string errors =
      c.recipe.seeds.size() > 1
          ? cat("mean ± standard error over ", c.recipe.seeds.size(), " seeds")
          : std::string("one seed, ± standard error over samples");
  return cat(done, " of ", c.runs.size(), " runs done; ", errors,
             ". Rewards are in units of the task's own scale; control cost is the KL of the tuned "
             "chain against the base's, gap its KL against the tilted law of the run's "
             "scale. Measured on ",
             c.recipe.samples, " samples of the memoryless sampler from the same noise for all.");
}

std::string runs_html(const Comparison& c) {
  std::string items;
  for (const ComparedRun& run : c.runs) {
    const std::string folder = xml_text(run.folder);
    items += is_done(run.status)
                 ? cat("<li><a href=\"", folder, "/report.html\">", folder, "</a></li>")
                 : cat("<li>", folder, ": ", xml_text(run.status), "</li>");
  }
  return cat("<h2>Runs</h2><details><summary>", c.runs.size(),
             " runs and their reports</summary><ul>", items, "</ul></details>");
}

std::vector<Chart> charts_of(const Comparison& c, bool timed) {
  const double top = *std::max_element(c.recipe.scales.begin(), c.recipe.scales.end());
  std::vector<Chart> out;
  for (const char* x : {"control cost", "diversity", "Frechet distance"}) {
    out.push_back(trade_off(c, x, timed));
  }
  for (const RewardTerm& term : c.recipe.held_out) {
    out.push_back(trade_off(c, "held out: " + term.name, timed));
  }
  out.push_back(curves(c, top, timed, &CurvePoint::evaluations, {"network evaluations"}));
  out.push_back(curves(c, top, timed, &CurvePoint::seconds, {"training time", "seconds"}));
  return out;
}

}  // namespace

void write_comparison_page(const Comparison& c, const fs::path& out) {
  const std::string title = c.recipe.title.empty() ? "Methods compared" : c.recipe.title;
  const std::string intro = intro_of(c);
  std::string html = cat("<h1>", xml_text(title), "</h1><p>", xml_text(intro), "</p>");
  std::string text = cat("# ", title, "\n\n", intro, "\n");
  const double top = *std::max_element(c.recipe.scales.begin(), c.recipe.scales.end());
  for (const bool timed : {false, true}) {
    if (timed ? c.recipe.seconds <= 0 : c.recipe.evaluations <= 0) continue;
    const std::string budget =
        timed ? cat("Equal time: ", compact(c.recipe.seconds), " s of training a run")
              : cat("Equal cost: ", grouped(c.recipe.evaluations), " network evaluations a run");
    html += cat("<h2>", budget, "</h2>");
    text += cat("\n## ", budget, "\n");
    for (const double scale : c.recipe.scales) {
      const TextTable table = table_of_scale(c, scale, timed);
      html += cat("<h3>Reward scale × ", compact(scale), "</h3>",
                  html_table(table, cat("figures at reward scale ", compact(scale))));
      text += cat("\nReward scale x ", compact(scale), "\n\n", markdown_table(table));
      const std::vector<std::string> failures = failures_of(c, scale, timed);
      if (failures.empty()) continue;
      text += "\n- " + join(failures, "\n- ") + "\n";
      html += "<ul>";
      for (const std::string& failure : failures) html += cat("<li>", xml_text(failure), "</li>");
      html += "</ul>";
    }
    html += "<h3>Trade-offs and curves</h3>" + chart_figures(charts_of(c, timed)) +
            samples_html(c, out, top, timed);
  }
  html += runs_html(c);
  write_file_atomic(out / "compare.html", html_page(title, html));
  write_file_atomic(out / "compare.md", text);
}

}  // namespace tiltflow
