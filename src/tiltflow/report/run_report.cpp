#include "tiltflow/report/run_report.h"

#include <nlohmann/json.hpp>

#include "tiltflow/base/error.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/json_lines.h"
#include "tiltflow/report/html.h"
#include "tiltflow/report/report_check.h"
#include "tiltflow/report/run_curves.h"
#include "tiltflow/report/run_facts.h"
#include "tiltflow/report/run_pictures.h"
#include "tiltflow/report/svg_text.h"

namespace tiltflow {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

std::string curves_html(const std::vector<Json>& lines) {
  const RunCurves curves = curves_of(lines);
  const std::string main = chart_figures(curves.main);
  const std::string cost = chart_figures(curves.cost);
  const std::string other = chart_figures(curves.other);
  std::string out;
  if (!main.empty()) out += "<h2 id=\"curves\">Curves</h2>" + main;
  if (!cost.empty()) out += "<h2 id=\"cost\">Optimiser and cost</h2>" + cost;
  if (!other.empty()) {
    out +=
        cat("<h2 id=\"other\">Other numbers</h2><details><summary>Everything else that was "
            "logged</summary>",
            other, "</details>");
  }
  return out;
}

Json check_of(const fs::path& run) {
  const fs::path file = run / "check.json";
  return fs::exists(file) ? Json::parse(read_file(file)) : Json();
}

// Links to the parts that are there.
std::string contents_of(const std::string& body) {
  std::string out;
  for (const auto& [id, name] : {std::pair{"warnings", "Warnings"},
                                 {"pictures", "Pictures"},
                                 {"check", "Check"},
                                 {"curves", "Curves"},
                                 {"cost", "Cost"},
                                 {"settings", "Settings"}}) {
    if (body.find(cat("<h2 id=\"", id, "\">")) != std::string::npos) {
      out += cat(out.empty() ? "" : " · ", "<a href=\"#", id, "\">", name, "</a>");
    }
  }
  return cat("<nav aria-label=\"parts of this page\">", out, "</nav>");
}

}  // namespace

fs::path write_report(const fs::path& run) {
  if (!fs::exists(run / "config.toml") || !fs::exists(run / "metrics.jsonl")) {
    fail(ErrorKind::kBadFile, cat(run.string(), " is not a run directory"),
         "give the folder that `tiltflow finetune` or `pretrain` wrote");
  }
  const std::vector<Json> lines = read_json_lines(run / "metrics.jsonl");
  const std::string config = read_file(run / "config.toml");
  const auto settings = settings_of(config);
  const std::string name = fs::absolute(run).lexically_normal().filename().string();
  std::string head;
  std::string check_part;
  try {
    const Json check = check_of(run);
    head = cat("<h1>tiltflow run: ", xml_text(name), "</h1>", verdict_html(check, lines, settings),
               facts_html(settings));
    if (!check.is_null()) check_part = check_html(check);
  } catch (const nlohmann::json::exception&) {
    fail(ErrorKind::kBadFile, cat((run / "check.json").string(), " is broken"),
         "make it again with `tiltflow eval --run`");
  }
  const bool tuned = settings.count("reward[0].name") > 0;
  std::string body =
      warnings_html(lines) + pictures_html(run, tuned) + check_part + curves_html(lines);
  body += cat(
      "<h2 id=\"settings\">Settings</h2><details><summary>Every setting of the run</summary><pre>",
      xml_text(config), "</pre></details>");
  const fs::path file = run / "report.html";
  write_file_atomic(file, html_page(cat("tiltflow: ", name), head + contents_of(body) + body));
  return file;
}

}  // namespace tiltflow
