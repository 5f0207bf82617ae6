// Self-contained HTML pages: one style, no scripts, no files beside. Readable from 390 pixels on,
// in light and dark, with the keyboard and on paper. Plots and pictures enlarge by a plain link.
#pragma once

#include <string>
#include <vector>

#include "tiltflow/report/chart.h"

namespace tiltflow {

// `body` is HTML; `title` is text.
std::string html_page(const std::string& title, const std::string& body);

// A plot with its note and links that save it as SVG and its numbers as CSV; "" when there is
// nothing to draw. The links hold the files themselves, so they work from a page on disk.
std::string chart_figure(const Chart& chart);
// Those of the charts that have something to draw, side by side where there is room.
std::string chart_figures(const std::vector<Chart>& charts);

// A PNG file's bytes as a picture under its caption, small ones enlarged by a whole factor.
std::string picture_figure(const std::string& png, const std::string& caption);

// `figures`, side by side where there is room.
std::string figure_grid(const std::string& figures);

// A wide part, e.g. a table, that scrolls inside its own box. `label` is for screen readers.
std::string scrolling(const std::string& html, const std::string& label);

}  // namespace tiltflow
