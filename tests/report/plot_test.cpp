// Plots, their numbers as CSV, and pages: structure only, no golden pictures.
#include <algorithm>
#include <cmath>
#include <limits>

#include "tests/support.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/image.h"
#include "tiltflow/report/html.h"
#include "tiltflow/report/svg.h"
#include "tiltflow/report/svg_axis.h"
#include "tiltflow/report/svg_text.h"
#include "tiltflow/report/table.h"

namespace tiltflow {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

std::size_t count(const std::string& text, const std::string& part) {
  std::size_t n = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++n;
  return n;
}

// The first thing that makes `xml` not well-formed, or "". Knows elements, attributes and entities:
// what our writer uses.
std::string xml_fault(const std::string& xml) {
  std::vector<std::string> open;
  for (std::size_t i = 0; i < xml.size();) {
    if (xml[i] == '&') {
      const std::size_t end = xml.find(';', i);
      const std::string name = end == std::string::npos ? "" : xml.substr(i + 1, end - i - 1);
      if (name != "amp" && name != "lt" && name != "gt" && name != "quot") return "entity &" + name;
    }
    if (static_cast<unsigned char>(xml[i]) < 0x20 && xml[i] != '\n') return "control character";
    if (xml[i] != '<') {
      ++i;
      continue;
    }
    const std::size_t end = xml.find('>', i);
    if (end == std::string::npos) return "unclosed tag";
    const std::string tag = xml.substr(i + 1, end - i - 1);
    if (has(tag, "<") || count(tag, "\"") % 2 != 0) return "bad tag " + tag;
    const std::string name = tag.substr(0, tag.find_first_of(" /"));
    if (tag[0] == '/') {
      if (open.empty() || open.back() != tag.substr(1)) return "closes " + tag;
      open.pop_back();
    } else if (tag.back() != '/') {
      open.push_back(name);
    }
    i = end + 1;
  }
  return open.empty() ? "" : "leaves open " + open.back();
}

double attribute(const std::string& element, const std::string& name) {
  const std::size_t at = element.find(" " + name + "=\"");
  return at == std::string::npos ? kNan : std::atof(element.c_str() + at + name.size() + 3);
}

std::string element_with(const std::string& svg, const std::string& part) {
  const std::size_t at = svg.find(part);
  if (at == std::string::npos) return "";
  const std::size_t begin = svg.rfind('<', at);
  return svg.substr(begin, svg.find('>', at) - begin + 1);
}

std::vector<std::string> tick_texts(const Axis& axis) {
  std::vector<std::string> out;
  for (const Tick& tick : axis.ticks) {
    if (!tick.label.empty()) out.push_back(tick.label);
  }
  return out;
}

Chart two_curves() {
  Chart chart{"Control & \"cost\" <of all>", {"optimiser step"}, {"control cost", "nats", true}};
  chart.series.push_back({"first", {0, 1, 2, 3}, {0.1, 1, 10, 100}, {0.01, 0.1, 1, 10}});
  chart.series.push_back({"second, with a comma", {0, 1, 2, 3}, {0.5, kNan, 2, -1}});
  chart.series.push_back({"never there", {}, {}});
  chart.series.push_back({"nothing finite", {1, 2}, {kNan, kNan}});
  return chart;
}

}  // namespace

TEST(report_svg, IsWellFormedAndNamesAxesWithUnits) {
  const std::string svg = svg_chart(two_curves());
  EXPECT_EQ(xml_fault(svg), "");
  EXPECT_TRUE(has(svg, ">control cost (nats, log scale)</text>")) << svg;
  EXPECT_TRUE(has(svg, ">optimiser step</text>"));
  EXPECT_TRUE(has(svg, "Control &amp; &quot;cost&quot; &lt;of all&gt;"));
  EXPECT_TRUE(has(svg, "role=\"img\" aria-label=\"Control"));
  EXPECT_FALSE(has(svg, "nan") || has(svg, "inf")) << svg;
  Chart hostile = two_curves();
  hostile.series[0].name =
      "a\x01"
      "b\xff' \"<&>";
  hostile.y.text = "\xc3\xa9\xe2\x80";
  EXPECT_EQ(xml_fault(svg_chart(hostile)), "");
}

TEST(report_svg, LegendIsBelowThePlotAndListsOnlyWhatIsThere) {
  for (const std::size_t more : {0u, 5u, 30u}) {
    Chart chart = two_curves();
    for (std::size_t i = 0; i < more; ++i) {
      chart.series.push_back({cat("a rather long name of method number ", i), {0, 1}, {1, 2}});
    }
    chart.series.push_back({std::string(200, 'x'), {0}, {1}});
    const std::string svg = svg_chart(chart);
    const std::string legend = svg.substr(svg.find("<g class=\"legend\">"));
    EXPECT_TRUE(has(legend, ">first</text>"));
    EXPECT_FALSE(has(legend, "never") || has(legend, "nothing"));
    const std::string frame = element_with(svg, "class=\"frame\"");
    const double bottom = attribute(frame, "y") + attribute(frame, "height");
    const double height = attribute(svg, "height");
    for (std::size_t at = legend.find("<text"); at != std::string::npos;
         at = legend.find("<text", at + 1)) {
      const std::string text = legend.substr(at, legend.find('>', at) - at);
      EXPECT_GT(attribute(text, "y"), bottom + 30) << "covers the plot or its numbers";
      EXPECT_LT(attribute(text, "y"), height) << "cut off below";
      const std::size_t words = legend.find('>', at) + 1;
      const double width = text_width(legend.substr(words, legend.find('<', words) - words), 12.5);
      EXPECT_LE(attribute(text, "x") + width, 440) << "cut off at the side";
    }
  }
}

TEST(report_svg, SeriesDifferInMoreThanColour) {
  Chart chart{"many", {"x"}, {"y"}};
  for (int i = 0; i < 32; ++i) chart.series.push_back({cat("s", i), {0, 1}, {0.0 + i, 1.0 + i}});
  const std::string svg = svg_chart(chart);
  const std::string legend = svg.substr(svg.find("<g class=\"legend\">"));
  std::vector<std::string> looks;
  for (std::size_t at = legend.find("<path class=\"s"); at != std::string::npos;
       at = legend.find("<path class=\"s", at + 1)) {
    looks.push_back(legend.substr(at, legend.find(" d=", at) - at));
  }
  ASSERT_EQ(looks.size(), 32u);
  std::sort(looks.begin(), looks.end());
  EXPECT_EQ(std::unique(looks.begin(), looks.end()), looks.end()) << "two series look alike";
}

TEST(report_svg, GapsSinglePointsAndNothing) {
  EXPECT_EQ(svg_chart({"empty", {}, {}, {}}), "");
  EXPECT_EQ(svg_chart({"empty series", {"x"}, {"y"}, {{"a"}}}), "");
  EXPECT_EQ(svg_chart({"only NaN", {"x"}, {"y"}, {{"a", {0, 1}, {kNan, kNan}}}}), "");
  EXPECT_EQ(
      svg_chart({"only zeros on a log axis", {"x"}, {"y", "", true}, {{"a", {0, 1}, {0, -1}}}}),
      "");
  const std::string single = svg_chart({"one", {"step"}, {"y"}, {{"", {100}, {0.3}}}});
  EXPECT_EQ(xml_fault(single), "");
  EXPECT_EQ(count(single, "<path class=\"m0\""), 1u) << "a point alone is a mark";
  EXPECT_TRUE(has(single, ">100</text>"));
  Chart gap{"gap", {"x"}, {"y"}, {{""}}};
  for (int i = 0; i < 60; ++i) {
    gap.series[0].x.push_back(i);
    gap.series[0].y.push_back(i == 20 || i == 22 ? kNan : i);
  }
  const std::string svg = svg_chart(gap);
  EXPECT_EQ(count(element_with(svg, "stroke-width=\"2\""), "M"), 2u)
      << "the line breaks where numbers are missing";
  EXPECT_EQ(count(svg, "<path class=\"m0\""), 1u) << "the point between two gaps is seen";
  const Chart huge{"huge", {"x"}, {"y"}, {{"", {0, 1, 2}, {-1e308, 1e308, 1}}}};
  EXPECT_FALSE(has(svg_chart(huge), "inf") || has(svg_chart(huge), "nan"));
}

TEST(report_svg, ErrorsAreBandsOrBars) {
  Chart chart{"errors", {"x"}, {"y"}, {{"a"}}};
  for (int i = 0; i < 50; ++i) {
    chart.series[0].x.push_back(i);
    chart.series[0].y.push_back(i);
    chart.series[0].error.push_back(2);
  }
  EXPECT_EQ(count(svg_chart(chart), "class=\"band"), 1u);
  chart.y.logarithmic = true;  // lower ends below zero stay inside the frame
  const std::string svg = svg_chart(chart);
  EXPECT_EQ(count(svg, "class=\"band"), 1u);
  EXPECT_FALSE(has(svg, "nan"));
  chart.marks = true;
  EXPECT_EQ(count(svg_chart(chart), "class=\"band"), 0u);
}

TEST(report_axis, NumbersAreReadable) {
  EXPECT_EQ(tick_texts(make_axis(0, 0.5, false, false, 0, 5)),
            (std::vector<std::string>{"0", "0.1", "0.2", "0.3", "0.4", "0.5"}));
  EXPECT_EQ(tick_texts(make_axis(0, 2.5e6, false, false, 0, 5)),
            (std::vector<std::string>{"0", "0.5M", "1.0M", "1.5M", "2.0M", "2.5M"}));
  EXPECT_EQ(tick_texts(make_axis(-2e-5, 2e-5, false, false, 0, 4)),
            (std::vector<std::string>{"−2×10⁻⁵", "−1×10⁻⁵", "0", "1×10⁻⁵", "2×10⁻⁵"}));
  EXPECT_EQ(tick_texts(make_axis(0, 3, false, true, 0.03, 6)),
            (std::vector<std::string>{"0", "1", "2", "3"}))
      << "steps are whole";
  EXPECT_EQ(tick_texts(make_axis(0.001, 10, true, false, 0, 5)),
            (std::vector<std::string>{"0.001", "0.01", "0.1", "1", "10"}));
  EXPECT_EQ(tick_texts(make_axis(1e-7, 1e2, true, false, 0, 5)),
            (std::vector<std::string>{"10⁻⁶", "10⁻⁴", "10⁻²", "10⁰", "10²"}));
  EXPECT_GE(tick_texts(make_axis(0.98, 1.02, true, false, 0, 5)).size(), 3u)
      << "a narrow logarithmic range still has numbers";
  for (const double v : {0.0, 1.0, -3e-9, 7e12, 1e300}) {
    EXPECT_GE(tick_texts(make_axis(v, v, false, false, 0.05, 5)).size(), 1u) << v;
  }
}

TEST(report_axis, LogarithmicAxesHaveMinorTicksAtTheirPlaces) {
  const Axis axis = make_axis(1, 1000, true, false, 0, 5);
  const auto minor = std::count_if(axis.ticks.begin(), axis.ticks.end(),
                                   [](const Tick& t) { return t.label.empty(); });
  EXPECT_EQ(minor, 24);
  EXPECT_NEAR(axis.place(10), 1.0 / 3, 1e-12);
  EXPECT_TRUE(std::isnan(axis.place(0)));
}

TEST(report_csv, HoldsEveryNumberWithUnits) {
  const std::string csv = chart_csv(two_curves());
  const std::vector<std::string> lines = split(csv, '\n');
  EXPECT_EQ(lines[0],
            "series,optimiser step,control cost (nats),standard error of control cost (nats)");
  EXPECT_EQ(lines[1], "first,0,0.1,0.01");
  EXPECT_EQ(lines[6], "\"second, with a comma\",1,nan,");
  EXPECT_EQ(lines[8], "\"second, with a comma\",3,-1,");
  Chart exact{"", {"x"}, {"y"}, {{"", {1}, {0.1 + 0.2}}}};
  EXPECT_EQ(std::stod(split(split(chart_csv(exact), '\n')[1], ',')[2]), 0.1 + 0.2)
      << "reads back as the same number";
  Chart steps{"", {"ink"}, {"density"}, {{"a", {0, 0.5, 1}, {2, 3}}}};
  steps.series[0].steps = true;
  EXPECT_EQ(chart_csv(steps), "series,ink from,ink to,density\na,0,0.5,2\na,0.5,1,3\n");
}

TEST(report_csv, LongSeriesKeepTheirPeaksAndSaySo) {
  Chart chart{"long", {"x"}, {"y"}, {{"a"}}};
  for (int i = 0; i < 20000; ++i) {
    chart.series[0].x.push_back(i);
    chart.series[0].y.push_back(i == 7777 ? 1e6 : std::sin(i));
  }
  const Chart thin = thinned(chart);
  EXPECT_LE(thin.series[0].y.size(), 1002u);
  EXPECT_EQ(*std::max_element(thin.series[0].y.begin(), thin.series[0].y.end()), 1e6);
  EXPECT_EQ(thin.series[0].x.back(), 19999);
  EXPECT_TRUE(std::is_sorted(thin.series[0].x.begin(), thin.series[0].x.end()));
  EXPECT_TRUE(has(thin.note, "20000 points"));
  EXPECT_EQ(thinned(two_curves()).note, "");
}

// Pages hold everything, say how wide they may be, and every figure can be enlarged and closed
// again.
TEST(report_html, PagesAreSelfContainedAndFitNarrowScreens) {
  const std::string png = encode_png(at::rand({1, 28, 56}));
  const std::string table = html_table({{"name", "value"}, {"a <b>", "1 +- 0.5"}}, "numbers");
  const std::string page =
      html_page("a & b", chart_figures({two_curves(), two_curves(), {"nothing", {}, {}}}) +
                             picture_figure(png, "a 'picture' \"with\" words") + table);
  EXPECT_TRUE(has(page, "name=\"viewport\" content=\"width=device-width, initial-scale=1\""));
  EXPECT_TRUE(has(page, "minmax(min(100%,360px),1fr)") && has(page, "max-width:100%") &&
              has(page, ".wide{overflow-x:auto"));
  EXPECT_TRUE(has(page, "prefers-color-scheme:dark") && has(page, "@media print"));
  EXPECT_FALSE(has(page, "<script") || has(page, "src=\"http") || has(page, "href=\"http"));
  EXPECT_EQ(count(page, "<figure"), 3u);
  EXPECT_EQ(count(page, "class=\"close\""), 3u);
  EXPECT_EQ(count(page, "download=\"control-cost-of-all.svg\" href=\"data:image/svg+xml;base64,"),
            2u);
  EXPECT_EQ(
      count(page,
            "download=\"control-cost-of-all.csv\" href=\"data:text/csv;charset=utf-8;base64,"),
      2u);
  EXPECT_TRUE(has(page, "width=\"560\" height=\"280\"")) << "small pictures are enlarged";
  EXPECT_TRUE(has(page, "alt=\"a 'picture' &quot;with&quot; words\""));
  EXPECT_TRUE(has(
      page, "<div class=\"wide\" role=\"region\" tabindex=\"0\" aria-label=\"numbers\"><table>"));
  EXPECT_TRUE(has(page, "<th scope=\"row\">a &lt;b&gt;</th><td>1 ± 0.5</td>"));
}

TEST(report_html, EstimatesAreRoundedToTheirErrors) {
  EXPECT_EQ(rounded({2.34792, 0.0727}), "2.348 ± 0.073");
  EXPECT_EQ(rounded({0.1274123, 0.00351}), "0.1274 ± 0.0035");
  EXPECT_EQ(rounded({1234.5, 99.9}), "1234 ± 100");
  EXPECT_EQ(rounded({0.25, 0}), "0.25");
  EXPECT_EQ(rounded({kNan, 1}), "-");
  EXPECT_EQ(grouped(2.5e6) + " " + grouped(-1500) + " " + grouped(999) + " " + grouped(0.5),
            "2,500,000 -1,500 999 0.5");
}

// Captions inside pictures: cells widen until every text is whole.
TEST(report_html, GridsKeepCaptionsWhole) {
  const at::Tensor images = at::zeros({2, 1, 12, 12});
  const std::string text = "10: -123.45";
  const at::Tensor grid = image_grid(images, 2, {text, text});
  EXPECT_GE(grid.size(2), 2 * static_cast<std::int64_t>(text.size()) * 6);
  const at::Tensor last =
      grid.narrow(2, grid.size(2) - 2 - 7, 7);  // the last character of the last caption
  EXPECT_GT(last.sum().item<double>(), 5);
  EXPECT_GT(image_grid(at::zeros({1, 1, 112, 112}), 1, {text}).size(1), 112 + 2 * 9)
      << "larger pictures, larger text";
}

}  // namespace tiltflow
