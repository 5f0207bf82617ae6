#include "tiltflow/eval/sweep_page.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "tiltflow/base/file.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/json_lines.h"
#include "tiltflow/report/html.h"
#include "tiltflow/report/report_check.h"
#include "tiltflow/report/svg_text.h"
#include "tiltflow/report/table.h"

namespace tiltflow {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kCost = "control cost (nats)";

// One row of the table: texts in their order, and the numbers among them.
struct Row {
  std::vector<std::pair<std::string, std::string>> cells;
  std::map<std::string, Estimate> numbers;

  void add(const std::string& name, const std::string& text) {
    for (auto& [key, value] : cells) {
      if (key != name) continue;
      value = text;
      return;
    }
    cells.emplace_back(name, text);
  }
  void add(const std::string& name, const Estimate& e) {
    numbers[name] = e;
    add(name, show(e));
  }
  std::string text(const std::string& name) const {
    for (const auto& [key, value] : cells) {
      if (key == name) return value;
    }
    return "";
  }
};

void add_check(Row& row, const std::filesystem::path& file) {
  const Json check = Json::parse(read_file(file));
  const Json& sde = check.at("samplers").at(0);
  for (const Json& s : sde.at("statistics")) {
    const std::string name = s.at("name");
    if (name != "reward mean" && name != "intra-class variance") continue;
    row.add(name + ", base", estimate_from_json(s.at("base")));
    row.add(name + ", p*", estimate_from_json(s.at("predicted")));
    row.add(name + ", tuned", estimate_from_json(s.at("tuned")));
  }
  row.add(kCost, estimate_from_json(sde.at("control_cost")));
  row.add("gap (nats)", estimate_from_json(sde.at("path_gap")));
  row.add(
      "ESS of base samples",
      cat(fixed(100 * number_from_json(sde.at("ess")) / sde.at("base_samples").get<double>(), 1),
          " %"));
  row.add("check", check.at("passed").get<bool>() ? "passed" : "failed");
}

void add_last_evaluation(Row& row, const std::filesystem::path& file) {
  for (const Json& line : read_json_lines(file)) {
    for (const auto& [key, name] : {std::pair{"eval_reward", "reward mean, tuned"},
                                    {"eval_control_cost", kCost},
                                    {"eval_path_gap", "gap (nats)"}}) {
      if (!line.contains(key)) continue;
      const std::string error = cat(key, "_se");
      row.add(name, Estimate{number_from_json(line[key]),
                             line.contains(error) ? number_from_json(line[error]) : 0});
    }
  }
}

Row row_of(const SweepOptions& options, const SweptRun& run) {
  Row row;
  row.add("run", run.name);
  for (const auto& [key, value] : run.values) row.add(key, value);
  row.add("status", run.status);
  if (run.steps > 0) {
    row.add("steps", cat(run.steps));
    row.add("evaluations a step", compact(run.evaluations));
  }
  const std::filesystem::path folder = options.out / run.name;
  if (std::filesystem::exists(folder / "check.json")) {
    add_check(row, folder / "check.json");
  } else if (std::filesystem::exists(folder / "metrics.jsonl")) {
    add_last_evaluation(row, folder / "metrics.jsonl");
  }
  return row;
}

std::vector<std::string> columns_of(const std::vector<Row>& rows) {
  std::vector<std::string> out{"run"};
  for (const Row& row : rows) {
    for (const auto& [name, text] : row.cells) {
      if (std::find(out.begin(), out.end(), name) == out.end()) out.push_back(name);
    }
  }
  return out;
}

TextTable table_of(const std::vector<Row>& rows) {
  TextTable out{columns_of(rows)};
  for (const Row& row : rows) {
    out.emplace_back();
    for (const std::string& column : out[0]) out.back().push_back(row.text(column));
  }
  return out;
}

std::string linked_table(const SweepOptions& options, const TextTable& table) {
  TextTable cells = table;
  for (std::size_t i = 0; i < cells.size(); ++i) {
    for (std::size_t j = 0; j < cells[i].size(); ++j) cells[i][j] = html_cell(table[i][j]);
    const bool there = i > 0 && std::filesystem::exists(options.out / table[i][0] / "report.html");
    if (there) {
      cells[i][0] =
          cat("<a href=\"", xml_text(table[i][0]), "/report.html\">", cells[i][0], "</a>");
    }
  }
  return html_table_of(cells, "figures of every run");
}

// One line for every value of the first key when there are several keys, else one line.
Chart trade_off(const SweepOptions& options, const std::vector<Row>& rows,
                const std::string& figure, const std::string& title, const AxisLabel& label) {
  Chart chart{title, {"control cost", "nats"}, label};
  chart.marks = true;
  std::vector<std::pair<std::string, std::vector<std::pair<Estimate, Estimate>>>>
      lines;  // in the order of the runs
  for (const Row& row : rows) {
    const auto cost = row.numbers.find(kCost);
    const auto value = row.numbers.find(figure);
    if (cost == row.numbers.end() || value == row.numbers.end()) continue;
    const bool several = options.keys.size() > 1 && !options.together;
    const std::string name =
        several ? cat(options.keys[0].key, " = ", row.text(options.keys[0].key)) : "";
    auto line = std::find_if(lines.begin(), lines.end(),
                             [&](const auto& one) { return one.first == name; });
    if (line == lines.end()) line = lines.insert(lines.end(), {name, {}});
    line->second.push_back({cost->second, value->second});
  }
  for (auto& [name, points] : lines) {
    std::sort(points.begin(), points.end(),
              [](const auto& a, const auto& b) { return a.first.value < b.first.value; });
    Series one{name};
    for (const auto& [cost, value] : points) {
      one.x.push_back(cost.value);
      one.x_error.push_back(cost.se);
      one.y.push_back(value.value);
      one.error.push_back(value.se);
    }
    chart.series.push_back(std::move(one));
  }
  return chart;
}

std::string html_of(const SweepOptions& options, const std::vector<Row>& rows,
                    const TextTable& table) {
  const auto finished = std::count_if(rows.begin(), rows.end(), [](const Row& row) {
    return row.text("status") == "done" || row.text("status") == "there already";
  });
  const std::string charts = chart_figures(
      {trade_off(options, rows, "reward mean, tuned", "Reward against control cost",
                 {"mean reward, scaled", "nats"}),
       trade_off(options, rows, "intra-class variance, tuned", "Diversity against control cost",
                 {"intra-class variance, tuned", "squared brightness"}),
       trade_off(options, rows, "gap (nats)", "Gap against control cost", {"gap", "nats"})});
  return cat("<h1>Sweep of ", xml_text(options.config.filename().string()), "</h1><p>", finished,
             " of ", rows.size(),
             " runs finished. Rewards are scaled; ± is one standard error.</p>",
             linked_table(options, table), charts.empty() ? "" : "<h2>Trade-offs</h2>", charts);
}

}  // namespace

void write_sweep_page(const SweepOptions& options, const std::vector<SweptRun>& runs) {
  std::vector<Row> rows;
  Json data = Json::array();
  for (const SweptRun& run : runs) {
    rows.push_back(row_of(options, run));
    Json one = Json::object();
    for (const auto& [name, text] : rows.back().cells) one[name] = text;
    data.push_back(std::move(one));
  }
  const TextTable table = table_of(rows);
  write_file_atomic(options.out / "sweep.json", data.dump(1) + "\n");
  write_file_atomic(options.out / "sweep.md", markdown_table(table));
  write_file_atomic(options.out / "sweep.html",
                    html_page("tiltflow: sweep", html_of(options, rows, table)));
}

}  // namespace tiltflow
