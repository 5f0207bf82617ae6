#include "tiltflow/report/html.h"
#include "tests/report/markup.h"
#include "tests/support.h"
#include "tiltflow/io/image.h"
#include "tiltflow/report/table.h"

namespace tiltflow {
namespace {

using test::count_of;
using test::has;
using test::kNan;
using test::two_curves;

}  // namespace

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
  EXPECT_EQ(count_of(page, "<figure"), 3u);
  EXPECT_EQ(count_of(page, "class=\"close\""), 3u);
  EXPECT_EQ(
      count_of(page, "download=\"control-cost-of-all.svg\" href=\"data:image/svg+xml;base64,"), 2u);
  EXPECT_EQ(
      count_of(page,
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
