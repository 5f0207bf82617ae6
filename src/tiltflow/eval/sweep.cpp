#include "tiltflow/eval/sweep.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "tiltflow/base/count.h"
#include "tiltflow/base/error.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/problems.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/eval/budget.h"
#include "tiltflow/eval/html.h"
#include "tiltflow/eval/report.h"
#include "tiltflow/eval/run_check.h"
#include "tiltflow/eval/svg.h"
#include "tiltflow/io/json_lines.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/train/start_check.h"

namespace tiltflow {
namespace {

using Json = nlohmann::ordered_json;

// A folder name from a key and a value: the last part of the key, and nothing a file system minds.
std::string label(const std::string& key, const std::string& value) {
  std::string text = key.substr(key.rfind('.') == std::string::npos ? 0 : key.rfind('.') + 1) + "-" + value;
  for (char& c : text) if (!std::isalnum(static_cast<unsigned char>(c)) && c != '.' && c != '-' && c != '_') c = '_';
  return text.substr(0, 60);
}

// What the table shows of a run: from its check when there is one, else from the last evaluation.
Json figures(const std::filesystem::path& run) {
  Json out = Json::object();
  const auto estimate = [](const Json& e) { return cat(compact(number_from_json(e["value"])), " +- ", compact(number_from_json(e["se"]), 2)); };
  if (std::filesystem::exists(run / "check.json")) {
    const Json check = Json::parse(read_file(run / "check.json"));
    const Json& sde = check["samplers"][0];
    for (const Json& s : sde["statistics"]) {
      const std::string name = s["name"];
      if (name != "reward mean" && name != "intra-class variance") continue;
      out[name + ", base"] = estimate(s["base"]), out[name + ", p*"] = estimate(s["predicted"]), out[name + ", tuned"] = estimate(s["tuned"]);
    }
    out["control cost (nats)"] = estimate(sde["control_cost"]), out["gap (nats)"] = estimate(sde["path_gap"]);
    out["ESS of base samples"] = cat(fixed(100 * number_from_json(sde["ess"]) / sde["base_samples"].get<double>(), 1), " %");
    out["check"] = check["passed"].get<bool>() ? "passed" : "failed";
    return out;
  }
  if (!std::filesystem::exists(run / "metrics.jsonl")) return out;
  for (const Json& line : read_json_lines(run / "metrics.jsonl")) {
    for (const auto& [key, name] : {std::pair{"eval_reward", "reward mean, tuned"}, {"eval_control_cost", "control cost (nats)"}, {"eval_path_gap", "gap (nats)"}}) {
      if (line.contains(key)) out[name] = cat(compact(number_from_json(line[key])), line.contains(cat(key, "_se")) ? cat(" +- ", compact(number_from_json(line[cat(key, "_se")]), 2)) : "");
    }
  }
  return out;
}

double leading_number(const Json& row, const std::string& key) { return row.contains(key) ? std::atof(row[key].get<std::string>().c_str()) : std::nan(""); }

void write_tables(const SweepOptions& options, const std::vector<SweptRun>& runs) {
  Json rows = Json::array();
  std::vector<std::string> columns{"run"};
  for (const SweptRun& run : runs) {
    Json row{{"run", run.name}};
    for (const auto& [key, value] : run.values) row[key] = value;
    row["status"] = run.status;
    if (run.steps > 0) row["steps"] = cat(run.steps), row["evaluations a step"] = compact(run.evaluations);
    row.update(figures(options.out / run.name));
    for (const auto& [key, value] : row.items()) if (std::find(columns.begin(), columns.end(), key) == columns.end()) columns.push_back(key);
    rows.push_back(std::move(row));
  }
  std::string text = "|", line = "|", html = "<h1>Sweep of " + html_escape(options.config.string()) + "</h1><table><tr>";
  for (const std::string& column : columns) text += cat(" ", column, " |"), line += "---|", html += cat("<th>", html_escape(column), "</th>");
  text += "\n" + line + "\n", html += "</tr>";
  for (const Json& row : rows) {
    text += "|", html += "<tr>";
    for (const std::string& column : columns) {
      const std::string cell = row.contains(column) ? row[column].get<std::string>() : "";
      text += cat(" ", cell, " |");
      html += column == "run" ? cat("<td><a href='", html_escape(cell), "/report.html'>", html_escape(cell), "</a></td>") : cat("<td>", html_escape(cell), "</td>");
    }
    text += "\n", html += "</tr>";
  }
  html += "</table>";
  for (const auto& [y, title] : {std::pair{"reward mean, tuned", "reward against control cost"}, {"intra-class variance, tuned", "diversity against control cost"}, {"gap (nats)", "gap against control cost"}}) {
    // One line for every value of the first key when there are several keys, else one line.
    std::map<std::string, std::vector<std::pair<double, double>>> lines;
    for (const Json& row : rows) {
      const std::pair<double, double> point{leading_number(row, "control cost (nats)"), leading_number(row, y)};
      if (std::isfinite(point.first) && std::isfinite(point.second)) lines[options.keys.size() > 1 && !options.together ? row[options.keys[0].key].get<std::string>() : ""].push_back(point);
    }
    Chart chart{title, "control cost (nats)", y, {}, false};
    std::size_t most = 0;
    for (auto& [name, points] : lines) {
      std::sort(points.begin(), points.end());
      Series one;
      one.name = name, most = std::max(most, points.size());
      for (const auto& [cost, value] : points) one.x.push_back(cost), one.y.push_back(value);
      chart.series.push_back(std::move(one));
    }
    if (const std::string svg = svg_chart(chart); most > 1 && !svg.empty()) html += cat("<figure>", svg, "</figure>");
  }
  write_file_atomic(options.out / "sweep.json", rows.dump(1) + "\n");
  write_file_atomic(options.out / "sweep.md", text);
  write_file_atomic(options.out / "sweep.html", html_page("tiltflow sweep", html));
}

}  // namespace

SweptKey parse_swept_key(const std::string& text) {
  const std::size_t equals = text.find('=');
  if (equals == std::string::npos || equals == 0) fail(ErrorKind::kUsage, cat("'", text, "': expected KEY=VALUE,VALUE,..."));
  SweptKey out{text.substr(0, equals), {""}};
  int depth = 0;
  bool quoted = false;
  for (const char c : text.substr(equals + 1)) {
    if (c == '"') quoted = !quoted;
    if (!quoted && (c == '[' || c == '{')) ++depth;
    if (!quoted && (c == ']' || c == '}')) --depth;
    if (c == ',' && depth == 0 && !quoted) out.values.emplace_back();
    else out.values.back() += c;
  }
  for (const std::string& value : out.values) if (value.empty()) fail(ErrorKind::kUsage, cat("'", text, "': an empty value"));
  return out;
}

std::vector<SweptRun> planned_runs(const SweepOptions& o) {
  if (o.keys.empty()) fail(ErrorKind::kUsage, "nothing to vary", "give --vary KEY=VALUE,VALUE,...");
  std::size_t count = o.together ? o.keys[0].values.size() : 1;
  for (const SweptKey& key : o.keys) {
    if (o.together && key.values.size() != count) fail(ErrorKind::kUsage, cat("--together: ", o.keys[0].key, " has ", counted(count, "value"), ", ", key.key, " has ", key.values.size()));
    if (!o.together) count *= key.values.size();
    if (count > 1000) fail(ErrorKind::kUsage, "more than 1,000 runs");
  }
  std::vector<SweptRun> runs;
  for (std::size_t i = 0; i < count; ++i) {
    SweptRun run;
    std::size_t rest = i;
    for (auto key = o.keys.rbegin(); key != o.keys.rend(); ++key) {  // the last key changes fastest
      const std::string& value = key->values[o.together ? i : rest % key->values.size()];
      rest /= key->values.size();
      run.values.insert(run.values.begin(), {key->key, value});
    }
    for (const auto& [key, value] : run.values) run.name += (run.name.empty() ? "" : "_") + label(key, value);
    for (const SweptRun& other : runs) if (other.name == run.name) { run.name += cat("_", i); break; }
    runs.push_back(std::move(run));
  }
  return runs;
}

namespace {

std::vector<Override> overrides_of(const SweepOptions& o, const SweptRun& run) {
  std::vector<Override> out = o.set;
  for (const auto& [key, value] : run.values) out.emplace_back(key + "=" + value, "--vary");
  return out;
}

}  // namespace

std::vector<SweptRun> check_sweep(const SweepOptions& o) {
  std::vector<SweptRun> runs = planned_runs(o);
  Problems problems;
  for (const SweptRun& run : runs) {
    problems.check(run.name, [&] { check_start(set_up(load_config<FinetuneConfig>(o.config, overrides_of(o, run)))); });
  }
  problems.raise();
  return runs;
}

std::vector<SweptRun> sweep(const SweepOptions& o, const std::function<void(std::size_t, const SweptRun&)>& begins) {
  std::vector<SweptRun> runs = planned_runs(o);
  make_directories(o.out);
  for (std::size_t i = 0; i < runs.size(); ++i) {
    SweptRun& run = runs[i];
    if (begins) begins(i, run);
    const std::filesystem::path folder = o.out / run.name;
    run.status = status_of(run.name, [&]() -> std::string {
      const PlannedRun planned = plan_run(o.config, overrides_of(o, run), {o.budget, 0}, folder);
      if (o.budget > 0) run.steps = planned.config.train.steps, run.evaluations = planned.evaluations;
      const bool trained = train_unless_there(planned, folder);
      const bool finished = !trained && (!o.check || std::filesystem::exists(folder / "check.json"));
      if (!finished && o.check) check_run(folder);
      else if (!finished) write_report(folder);
      return finished ? "there already" : "done";
    });
    write_tables(o, runs);
  }
  return runs;
}

}  // namespace tiltflow
