#include <algorithm>

#include "tests/report/markup.h"
#include "tests/support.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/report/svg.h"
#include "tiltflow/report/svg_text.h"

namespace tiltflow {
namespace {

using test::count_of;
using test::has;
using test::kNan;
using test::two_curves;

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
    if (has(tag, "<") || count_of(tag, "\"") % 2 != 0) return "bad tag " + tag;
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
  EXPECT_EQ(count_of(single, "<path class=\"m0\""), 1u) << "a point alone is a mark";
  EXPECT_TRUE(has(single, ">100</text>"));
  Chart gap{"gap", {"x"}, {"y"}, {{""}}};
  for (int i = 0; i < 60; ++i) {
    gap.series[0].x.push_back(i);
    gap.series[0].y.push_back(i == 20 || i == 22 ? kNan : i);
  }
  const std::string svg = svg_chart(gap);
  EXPECT_EQ(count_of(element_with(svg, "stroke-width=\"2\""), "M"), 2u)
      << "the line breaks where numbers are missing";
  EXPECT_EQ(count_of(svg, "<path class=\"m0\""), 1u) << "the point between two gaps is seen";
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
  EXPECT_EQ(count_of(svg_chart(chart), "class=\"band"), 1u);
  chart.y.logarithmic = true;  // lower ends below zero stay inside the frame
  const std::string svg = svg_chart(chart);
  EXPECT_EQ(count_of(svg, "class=\"band"), 1u);
  EXPECT_FALSE(has(svg, "nan"));
  chart.marks = true;
  EXPECT_EQ(count_of(svg_chart(chart), "class=\"band"), 0u);
}

}  // namespace tiltflow
