#include "tiltflow/report/html.h"

#include <algorithm>
#include <cctype>

#include "tiltflow/base/hash.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/report/svg.h"
#include "tiltflow/report/svg_text.h"

namespace tiltflow {
namespace {

const char* const kStyle = R"css(
:root{color-scheme:light dark;--ink:#1f2328;--soft:#59636e;--line:#d0d7de;--page:#fff;--box:#f6f8fa;--link:#0a58b0;
--ok:#1a7f37;--bad:#c5221f;--note:#fff8c5}
*{box-sizing:border-box}
body{font:16px/1.5 system-ui,'Segoe UI','DejaVu Sans',sans-serif;margin:0;color:var(--ink);background:var(--page);overflow-wrap:break-word}
main{max-width:1240px;margin:0 auto;padding:1rem clamp(12px,3vw,36px) 4rem}
h1{font-size:1.6rem;line-height:1.25;margin:.6rem 0}h2{font-size:1.25rem;margin:2.4rem 0 .8rem;padding-bottom:.25rem;border-bottom:1px solid var(--line)}
h3{font-size:1.05rem;margin:1.6rem 0 .5rem}p{max-width:75ch;margin:.5rem 0}a{color:var(--link)}
a:focus-visible,summary:focus-visible,.wide:focus-visible{outline:3px solid var(--link);outline-offset:2px}
.soft{color:var(--soft)}.ok{color:var(--ok);font-weight:600}.bad{color:var(--bad);font-weight:700}
.verdict{font-size:1.15rem;padding:.7rem 1rem;border-left:5px solid var(--soft);background:var(--box);max-width:none}
.verdict.ok{border-color:var(--ok);color:inherit;font-weight:inherit}.verdict.bad{border-color:var(--bad);color:inherit;font-weight:inherit}
.warnings{background:var(--note);padding:.6rem 1rem .6rem 2rem;margin:1rem 0}.warnings li{margin:.3rem 0}
.wide{overflow-x:auto;max-width:100%;margin:.8rem 0;background:linear-gradient(to left,var(--page) 40%,transparent) right/44px 100% no-repeat local,
linear-gradient(to left,rgba(110,118,129,.45),transparent) right/12px 100% no-repeat scroll}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.92rem}
td,th{padding:.3rem .7rem;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
thead th{border-bottom:2px solid var(--soft);vertical-align:bottom;white-space:normal;min-width:5.5em}
tbody th{font-weight:normal}td:first-child,th:first-child{text-align:left;position:sticky;left:0;background:var(--page)}
@media (max-width:600px){td:first-child,th:first-child{white-space:normal;min-width:7.5em;max-width:9.5em}}
dl.facts{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1rem;margin:1rem 0}dl.facts dt{color:var(--soft)}dl.facts dd{margin:0;min-width:0}
.figures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,360px),1fr));gap:1.6rem 1.8rem;align-items:start;margin:1rem 0}
.figures.pictures{grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr))}
figure{margin:0;min-width:0;max-width:620px}figure .shown{display:block;color:inherit;text-decoration:none;cursor:zoom-in}
figure svg{display:block;width:100%;height:auto}svg .paper{fill:none}figure img{display:block;max-width:100%;height:auto;image-rendering:pixelated;background:#000}
figcaption{color:var(--soft);font-size:.88rem;margin-top:.35rem}figcaption a{margin-right:.9em;white-space:nowrap;display:inline-block;padding:.15em 0}
figure .close{display:none}
figure:target{position:fixed;inset:0;z-index:9;max-width:none;background:var(--page);padding:3.2rem 1rem 1rem;overflow:auto}
figure:target .shown{cursor:default}figure:target .close{display:block;position:fixed;top:.6rem;right:1rem;font-size:1.05rem;padding:.35rem .8rem;background:var(--box);border:1px solid var(--line)}
figure:target svg{max-height:78vh}figure:target img{width:100%;max-height:82vh;object-fit:contain}
pre{background:var(--box);padding:1rem;font-size:.8rem;white-space:pre-wrap;overflow-wrap:anywhere}
summary{cursor:pointer;padding:.3rem 0}ul{padding-left:1.3rem}
@media screen and (prefers-color-scheme:dark){
:root{--ink:#e6edf3;--soft:#9da7b3;--line:#3d444d;--page:#0d1117;--box:#161b22;--link:#79b8ff;--ok:#56d364;--bad:#ff8f88;--note:#332a05}
svg text{fill:#e6edf3}svg .grid{stroke:#2a313a}
.s0{stroke:#4fb3f0}.b0,.m0{fill:#4fb3f0}.s1{stroke:#ff9248}.b1,.m1{fill:#ff9248}.s2{stroke:#2fd1a5}.b2,.m2{fill:#2fd1a5}.s3{stroke:#e59bd0}.b3,.m3{fill:#e59bd0}
.s4{stroke:#d0d4da}.b4,.m4{fill:#d0d4da}.s5{stroke:#f0c541}.b5,.m5{fill:#f0c541}.s6{stroke:#9dbcff}.b6,.m6{fill:#9dbcff}.s7{stroke:#ff8aa5}.b7,.m7{fill:#ff8aa5}}
@media print{main{max-width:none;padding:0}.tools,.close,nav{display:none!important}.figures{grid-template-columns:1fr 1fr}
figure,tr,.verdict{break-inside:avoid}h2,h3{break-after:avoid}.wide{overflow:visible}table{font-size:7.5pt}td,th{padding:.15rem .35rem}a{color:inherit}}
)css";

// A name for a saved file: what every file system takes.
std::string file_name(const std::string& title) {
  std::string out;
  for (const char c : title) {
    const bool plain = std::isalnum(static_cast<unsigned char>(c)) != 0;
    if (plain) {
      out += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    } else if (!out.empty() && out.back() != '-') {
      out += '-';
    }
  }
  out = out.substr(0, 60);
  while (!out.empty() && out.back() == '-') out.pop_back();
  return out.empty() ? "plot" : out;
}

std::string hexadecimal(std::uint64_t v) {
  std::string out;
  for (; v > 0 || out.empty(); v /= 16) out.insert(out.begin(), "0123456789abcdef"[v % 16]);
  return out;
}

std::string data_link(const std::string& type, const std::string& bytes) {
  return cat("data:", type, ";base64,", base64(bytes));
}

std::string save_link(const std::string& name, const std::string& type, const std::string& bytes,
                      const std::string& text, const std::string& what) {
  return cat("<a download=\"", name, "\" href=\"", data_link(type, bytes), "\" aria-label=\"save ",
             xml_text(what), " as ", text, "\">", text, "</a>");
}

// `shown` under a link to its own figure, which the style enlarges while it is the page's target.
std::string enlargeable(const std::string& kind, const std::string& id, const std::string& name,
                        const std::string& shown, const std::string& caption) {
  return cat("<figure class=\"", kind, "\" id=\"", id, "\"><a class=\"shown\" href=\"#", id,
             "\" aria-label=\"enlarge: ", xml_text(name), "\">", shown, "</a><figcaption>", caption,
             "</figcaption><a class=\"close\" href=\"#back\">Close</a></figure>");
}

// Width and height in the header of a PNG file; zeros when it is none.
std::pair<std::uint32_t, std::uint32_t> size_of_png(const std::string& png) {
  const auto number = [&](std::size_t at) {
    std::uint32_t v = 0;
    for (std::size_t i = at; i < at + 4; ++i) v = v * 256 + static_cast<unsigned char>(png[i]);
    return v;
  };
  if (png.size() < 24) return {0, 0};
  return {number(16), number(20)};
}

}  // namespace

std::string html_page(const std::string& title, const std::string& body) {
  return cat(
      "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" "
      "content=\"width=device-width, initial-scale=1\"><title>",
      xml_text(title), "</title><style>", kStyle, "</style></head><body><main>\n", body,
      "\n</main></body></html>\n");
}

std::string chart_figure(const Chart& whole) {
  const Chart chart = thinned(whole);
  const std::string svg = svg_chart(chart);
  if (svg.empty()) return "";
  const bool errors = std::any_of(chart.series.begin(), chart.series.end(),
                                  [](const Series& s) { return !s.error.empty(); });
  std::string caption;
  if (!chart.note.empty()) caption += xml_text(chart.note) + " ";
  if (errors) caption += "± one standard error. ";
  const std::string csv = chart_csv(chart);
  const std::string name = file_name(chart.title);
  caption += cat(
      "<span class=\"tools\">", save_link(name + ".svg", "image/svg+xml", svg, "SVG", chart.title),
      save_link(name + ".csv", "text/csv;charset=utf-8", csv, "CSV", chart.title), "</span>");
  return enlargeable("plot", "plot-" + hexadecimal(fnv1a(chart.title + csv)), chart.title, svg,
                     caption);
}

std::string chart_figures(const std::vector<Chart>& charts) {
  std::string figures;
  for (const Chart& chart : charts) figures += chart_figure(chart);
  return figures.empty() ? "" : cat("<div class=\"figures\">", figures, "</div>");
}

std::string picture_figure(const std::string& png, const std::string& caption) {
  constexpr std::uint32_t kReadable =
      560;  // pixels across that small pictures are enlarged towards
  const auto [width, height] = size_of_png(png);
  const std::uint32_t factor =
      width > 0 ? std::max<std::uint32_t>(1, (kReadable + width / 2) / width) : 1;
  const std::string size =
      width > 0 ? cat(" width=\"", width * factor, "\" height=\"", height * factor, "\"") : "";
  const std::string image = cat("<img alt=\"", xml_text(caption), "\"", size, " src=\"",
                                data_link("image/png", png), "\">");
  return enlargeable("picture", "picture-" + hexadecimal(fnv1a(caption + png)), caption, image,
                     xml_text(caption));
}

std::string figure_grid(const std::string& figures) {
  return figures.empty() ? "" : cat("<div class=\"figures pictures\">", figures, "</div>");
}

std::string scrolling(const std::string& html, const std::string& label) {
  return cat("<div class=\"wide\" role=\"region\" tabindex=\"0\" aria-label=\"", xml_text(label),
             "\">", html, "</div>");
}

}  // namespace tiltflow
