#include "tiltflow/eval/html.h"

#include "tiltflow/base/strings.h"

namespace tiltflow {
namespace {

const char* const kStyle = R"(body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:1120px;padding:0 1em;color:#1f2328}
h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em;border-bottom:1px solid #d0d7de}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}td,th{padding:.2em .8em;text-align:right;border-bottom:1px solid #eaeef2}
td:first-child,th:first-child{text-align:left}.ok{color:#1a7f37}.bad{color:#cf222e;font-weight:bold}
figure{display:inline-block;margin:.5em 1em .5em 0}figcaption{color:#59636e;font-size:.9em}img{image-rendering:pixelated;max-width:100%}
svg .title{font:bold 13px sans-serif}svg .tick{font:11px sans-serif;fill:#59636e}svg .grid{stroke:#eaeef2}
pre{background:#f6f8fa;padding:1em;overflow:auto;font-size:12px})";

}  // namespace

std::string html_page(const std::string& title, const std::string& body) {
  return cat("<!doctype html><html lang='en'><head><meta charset='utf-8'><title>", html_escape(title), "</title><style>", kStyle, "</style></head><body>", body, "</body></html>\n");
}

}  // namespace tiltflow
