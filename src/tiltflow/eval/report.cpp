#include "tiltflow/eval/report.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <tuple>

#include "tiltflow/base/error.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/hash.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/eval/html.h"
#include "tiltflow/eval/svg.h"
#include "tiltflow/io/image.h"
#include "tiltflow/io/json_lines.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

Series series(const std::vector<Json>& lines, const std::string& key, const std::string& name, const std::string& error = "") {
  Series out;
  out.name = name;
  for (const Json& line : lines) {
    if (!line.contains(key)) continue;
    out.x.push_back(line.value("step", 0.0));
    out.y.push_back(number_from_json(line[key]));
    if (!error.empty()) out.error.push_back(line.contains(error) ? number_from_json(line[error]) : 0);
  }
  return out;
}

// Curves "loss_t0.05" etc., averaged into five bins of time.
std::vector<Series> per_time(const std::vector<Json>& lines, const std::string& prefix) {
  std::vector<Series> out(5);
  for (std::size_t b = 0; b < 5; ++b) out[b].name = cat("t ", fixed(0.2 * static_cast<double>(b), 1), "-", fixed(0.2 * static_cast<double>(b + 1), 1));
  for (const Json& line : lines) {
    double sum[5] = {}, count[5] = {};
    for (const auto& [key, value] : line.items()) {
      if (!starts_with(key, prefix)) continue;
      const auto bin = static_cast<std::size_t>(std::clamp(std::floor(std::atof(key.c_str() + prefix.size()) * 5 + 1e-9), 0.0, 4.0));
      sum[bin] += number_from_json(value), count[bin] += 1;
    }
    for (std::size_t b = 0; b < 5; ++b) if (count[b] > 0) out[b].x.push_back(line.value("step", 0.0)), out[b].y.push_back(sum[b] / count[b]);
  }
  return out;
}

std::string estimate_cell(const Json& e) { return cat("<td>", fixed(number_from_json(e["value"]), 4), " &plusmn; ", fixed(number_from_json(e["se"]), 4), "</td>"); }

std::string percent_of_shift(const Json& sampler) {
  const Json& e = sampler.at("shift_reached");
  return cat(fixed(100 * number_from_json(e["value"]), 0), " &plusmn; ", fixed(100 * number_from_json(e["se"]), 0), " %");
}

std::string check_section(const Json& check) {
  std::string out = cat("<h2>Tilted-law check: <span class='", check["passed"].get<bool>() ? "ok'>passed" : "bad'>failed", "</span></h2>",
                        "<p>Statistics of p* predicted by importance-weighting base samples, beside the tuned model's own from the same noise. Errors are standard errors.</p>");
  for (const Json& s : check["samplers"]) {
    out += cat("<h3>Sampler ", html_escape(s["sampler"].get<std::string>()), "</h3><p>", s["base_samples"].get<std::int64_t>(), " base samples, ESS ", fixed(number_from_json(s["ess"]), 0),
               "; ", s["tuned_samples"].get<std::int64_t>(), " tuned samples; log Z ", fixed(number_from_json(s["log_z"]["value"]), 3));
    if (number_from_json(s["control_cost"]["value"]) > 0) {
      const auto show = [&](const char* key, int digits) { return cat(fixed(number_from_json(s[key]["value"]), digits), " &plusmn; ", fixed(number_from_json(s[key]["se"]), digits)); };
      out += cat("; control cost ", show("control_cost", 3), " nats; gap ", show("gap", 3), " with log Z of the base samples, ", show("path_gap", 4), " from the tuned paths alone");
    }
    out += cat("; the tuned mean reward covers ", percent_of_shift(s), " of the shift from base to p*</p><table><tr><th>statistic</th><th>base</th><th>p* predicted</th><th>tuned</th><th>tuned - p*</th><th>tolerance</th><th></th></tr>");
    for (const Json& c : s["statistics"]) {
      const bool ok = c["agrees"].get<bool>();
      out += cat("<tr><td>", html_escape(c["name"].get<std::string>()), "</td>", estimate_cell(c["base"]), estimate_cell(c["predicted"]), estimate_cell(c["tuned"]), estimate_cell(c.at("difference")), "<td>", fixed(number_from_json(c["tolerance"]), 4), "</td><td class='", ok ? "ok'>agrees" : "bad'>differs", "</td></tr>");
    }
    out += "</table>";
    const Json& h = s["histogram"];
    Chart chart{cat("density of ", h["of"].get<std::string>(), " (", s["sampler"].get<std::string>(), ")"), h["of"].get<std::string>(), "", {}, false};
    for (const auto& [key, name] : {std::pair{"base", "base"}, {"predicted", "p* predicted"}, {"tuned", "tuned"}}) {
      Series one{name, h["edges"].get<std::vector<double>>(), h[key].get<std::vector<double>>(), {}, true, std::string(key) == "base"};
      if (!one.y.empty()) chart.series.push_back(std::move(one));
    }
    out += cat("<figure>", svg_chart(chart), "</figure>");
  }
  return out;
}

std::string picture(const fs::path& file, const std::string& caption) {
  return cat("<figure><img alt='", html_escape(caption), "' src='data:image/png;base64,", base64(read_file(file)), "'/><figcaption>", html_escape(caption), "</figcaption></figure>");
}

}  // namespace

fs::path write_report(const fs::path& run) {
  if (!fs::exists(run / "config.toml") || !fs::exists(run / "metrics.jsonl")) fail(ErrorKind::kBadFile, cat(run.string(), " is not a run directory"), "give the folder that `tiltflow finetune` or `pretrain` wrote");
  const std::vector<Json> lines = read_json_lines(run / "metrics.jsonl");
  std::string body = cat("<h1>tiltflow run: ", html_escape(fs::absolute(run).lexically_normal().filename().string()), "</h1>");

  std::vector<fs::path> all, pictures;
  std::error_code code;
  for (const auto& entry : fs::directory_iterator(run / "samples", code)) if (entry.path().extension() == ".png") all.push_back(entry.path());
  std::sort(all.begin(), all.end());
  for (const fs::path& file : all) if (starts_with(file.filename().string(), "samples-")) pictures.push_back(file);
  if (pictures.size() > 1) {
    body += "<h2>Before and after, from the same noise</h2>";
    body += picture(pictures.front(), "base model") + picture(pictures.back(), "tuned model, " + pictures.back().stem().string());
    const at::Tensor before = read_image(pictures.front()), after = read_image(pictures.back());
    if (before.sizes() == after.sizes()) write_png(run / "before-after.png", at::cat({before, at::ones({before.size(0), before.size(1), 24}), after}, 2));
  } else if (pictures.size() == 1) {
    body += "<h2>Samples</h2>" + picture(pictures[0], pictures[0].stem().string());
  }
  for (const auto& [prefix, title, caption] : {std::tuple{"base-above-tuned-", "One noise, one label", "above: base, below: tuned; the number is the reward"}, {"adjoint-", "Where the reward pulls", "size of the adjoint over the image, each map scaled to its maximum"}}) {
    const auto last = std::find_if(all.rbegin(), all.rend(), [&](const fs::path& file) { return starts_with(file.filename().string(), prefix); });
    if (last != all.rend()) body += cat("<h2>", title, "</h2>", picture(*last, cat(caption, " (", last->stem().string(), ")")));
  }
  if (fs::exists(run / "check.json")) {
    try {
      body += check_section(Json::parse(read_file(run / "check.json")));
    } catch (const nlohmann::json::exception&) {
      fail(ErrorKind::kBadFile, cat((run / "check.json").string(), " is broken"), "make it again with `tiltflow eval --run`");
    }
  }

  body += "<h2>Training</h2>";
  const std::string steps = "step";
  Series log_z;  // the bound E r - cost <= log Z as a line
  for (const Json& line : lines) if (line.contains("log_z") && !lines.empty()) log_z = {"", {0, lines.back().value("step", 0.0)}, {number_from_json(line["log_z"]), number_from_json(line["log_z"])}, {}, false, true};
  const std::vector<Chart> charts{
      {"reward", steps, "", {series(lines, "reward", "training batch"), series(lines, "eval_reward", "averaged weights", "eval_reward_se"), series(lines, "eval_ode_reward", "averaged weights, ODE", "eval_ode_reward_se")}, false},
      {"control cost (nats)", steps, "", {series(lines, "control_cost", "training batch"), series(lines, "eval_control_cost", "averaged weights")}, false},
      {"gap certificate: log Z - (E r - cost), zero only at the optimum", steps, "", {series(lines, "eval_gap", "log Z of base samples", "eval_gap_se"), series(lines, "eval_path_gap", "from tuned paths alone", "eval_path_gap_se")}, false},
      {"reward gained per nat of control", steps, "", {series(lines, "eval_gain_per_cost", "")}, false},
      {"loss", steps, "", {series(lines, "loss", "")}, true},
      {"loss by time", steps, "", per_time(lines, "loss_t"), true},
      {"control norm by time, |u| sqrt(h)", steps, "", per_time(lines, "control_norm_t"), true},
      {"target norm by time, |s a|", steps, "", per_time(lines, "target_norm_t"), true},
      {"state norm by time", steps, "", per_time(lines, "state_norm_t"), true},
      {"adjoint norm by time", steps, "", per_time(lines, "adjoint_norm_t"), true},
      {"gradient norm", steps, "", {series(lines, "gradient_norm", "")}, true},
      {"learning rate", steps, "", {series(lines, "learning_rate", "")}, false},
  };
  for (const Chart& chart : charts) if (const std::string svg = svg_chart(chart); !svg.empty()) body += cat("<figure>", svg, "</figure>");
  body += cat("<h2>Configuration</h2><pre>", html_escape(read_file(run / "config.toml")), "</pre>");

  const fs::path file = run / "report.html";
  write_file_atomic(file, html_page("tiltflow report", body));
  return file;
}

}  // namespace tiltflow
