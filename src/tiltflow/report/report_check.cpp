#include "tiltflow/report/report_check.h"

#include "tiltflow/base/strings.h"
#include "tiltflow/io/json_lines.h"
#include "tiltflow/report/html.h"
#include "tiltflow/report/svg_text.h"
#include "tiltflow/report/table.h"

namespace tiltflow {
namespace {

using Json = nlohmann::ordered_json;

std::string text_of(const Json& value) { return value.get<std::string>(); }

std::string table_of(const Json& sampler) {
  TextTable cells{
      {"statistic", "base", "p*, predicted", "tuned", "tuned − p*", "tolerance", "agrees"}};
  for (const Json& s : sampler.at("statistics")) {
    const bool agrees = s.at("agrees").get<bool>();
    cells.push_back({xml_text(text_of(s.at("name")))});
    for (const char* key : {"base", "predicted", "tuned", "difference"}) {
      cells.back().push_back(rounded(estimate_from_json(s.at(key))));
    }
    cells.back().push_back(compact(number_from_json(s.at("tolerance")), 2));
    cells.back().push_back(agrees ? "<span class=\"ok\">yes</span>"
                                  : "<span class=\"bad\">no</span>");
  }
  return html_table_of(cells, cat("statistics under sampler ", text_of(sampler.at("sampler"))));
}

std::string summary_of(const Json& s) {
  const auto show = [&](const char* key) { return rounded(estimate_from_json(s.at(key))); };
  std::string out =
      cat(s.at("base_samples").get<std::int64_t>(), " base samples, effective sample size ",
          fixed(number_from_json(s.at("ess")), 0), "; ", s.at("tuned_samples").get<std::int64_t>(),
          " tuned samples; log Z ", show("log_z"), ".");
  if (number_from_json(s.at("control_cost").at("value")) > 0) {
    out += cat(" Control cost ", show("control_cost"), " nats. Gap ", show("gap"),
               " nats with log Z of the base samples, ", show("path_gap"),
               " nats from the tuned paths alone.");
  }
  return cat("<p>", xml_text(out), "</p>");
}

Chart densities_of(const Json& sampler) {
  const Json& h = sampler.at("histogram");
  const std::string of = text_of(h.at("of"));
  Chart chart{cat("Density of ", of, " under ", text_of(sampler.at("sampler"))),
              {of, of == "reward" ? "nats" : "mean brightness, 0 to 1"},
              {"density", cat("per unit of ", of)}};
  for (const auto& [key, name] :
       {std::pair{"base", "base"}, {"predicted", "p*, predicted"}, {"tuned", "tuned"}}) {
    Series one{name, h.at("edges").get<std::vector<double>>(),
               h.at(key).get<std::vector<double>>()};
    one.steps = true;
    chart.series.push_back(std::move(one));
  }
  return chart;
}

}  // namespace

Estimate estimate_from_json(const Json& e) {
  return {number_from_json(e.at("value")), number_from_json(e.at("se"))};
}

std::string check_html(const Json& check) {
  std::string out =
      "<h2 id=\"check\">Tilted-law check</h2><p>Statistics of p* as importance weights predict "
      "them from base samples, beside the tuned model's own from the same noise, "
      "each with its standard error. They agree when they differ by no more than the "
      "tolerance.</p>";
  if (check.contains("law")) {
    out += cat("<p>Law checked: ", xml_text(text_of(check.at("law"))), ".</p>");
  }
  std::vector<Chart> densities;
  for (const Json& sampler : check.at("samplers")) {
    out += cat("<h3>Sampler ", xml_text(text_of(sampler.at("sampler"))), "</h3>",
               summary_of(sampler), table_of(sampler));
    densities.push_back(densities_of(sampler));
  }
  return out + chart_figures(densities);
}

}  // namespace tiltflow
