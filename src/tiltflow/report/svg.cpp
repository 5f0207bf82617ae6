#include "tiltflow/report/svg.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "tiltflow/base/strings.h"
#include "tiltflow/report/svg_layout.h"
#include "tiltflow/report/svg_text.h"

namespace tiltflow {
namespace svg {
namespace {

constexpr std::size_t kFewPoints = 30;
constexpr std::size_t kManyTips = 400;
// Told apart with any colour vision (after Okabe and Ito, and Tol), at least 3:1 against white.
constexpr std::array<const char*, 8> kColors{"#0072b2", "#d55e00", "#008a64", "#aa4499",
                                             "#444444", "#a87900", "#3b8fc4", "#882255"};
constexpr std::array<const char*, 8> kDashes{"",     "8 3", "2 3",     "8 3 2 3",
                                             "14 4", "4 4", "2 2 6 2", "10 3 2 3 2 3"};
constexpr std::size_t kShapes = 5;

struct Look {
  std::size_t color, dash, shape;
};

// Two series of one colour have other dashes and other marks.
Look look_of(std::size_t series) {
  const std::size_t round = series / kColors.size();
  return {series % kColors.size(), (series + round) % kDashes.size(),
          (series + 2 * round) % kShapes};
}

std::string number(double v) {
  std::string text = fixed(v, 1);
  if (ends_with(text, ".0")) text.resize(text.size() - 2);
  return text == "-0" ? "0" : text;
}

std::string text_at(double x, double y, const std::string& text, const std::string& attributes) {
  return cat("<text x=\"", number(x), "\" y=\"", number(y), "\" ", attributes, ">", xml_text(text),
             "</text>");
}

std::string frame_of(const Layout& l) {
  std::string out = cat("<rect class=\"frame\" x=\"", number(l.left), "\" y=\"", number(l.top),
                        "\" width=\"", number(l.right() - l.left), "\" height=\"",
                        number(l.bottom - l.top), "\" fill=\"none\" stroke=\"#8c959f\"/>");
  for (const Tick& tick : l.y.ticks) {
    const double y = l.bottom - tick.at * (l.bottom - l.top);
    const double end = tick.label.empty() ? l.left + 4 : l.right();
    out += cat("<line class=\"", tick.label.empty() ? "minor" : "grid", "\" x1=\"", number(l.left),
               "\" x2=\"", number(end), "\" y1=\"", number(y), "\" y2=\"", number(y),
               "\" stroke=\"", tick.label.empty() ? "#8c959f" : "#dde2e8", "\"/>");
    if (!tick.label.empty()) {
      out += text_at(l.left - 7, y + 4.5, tick.label, "class=\"tick\" text-anchor=\"end\"");
    }
  }
  for (const Tick& tick : l.x.ticks) {
    const double x = l.left + tick.at * (l.right() - l.left);
    const double end = tick.label.empty() ? l.bottom - 4 : l.bottom - 7;
    out += cat("<line class=\"minor\" x1=\"", number(x), "\" x2=\"", number(x), "\" y1=\"",
               number(l.bottom), "\" y2=\"", number(end), "\" stroke=\"#8c959f\"/>");
    if (!tick.label.empty()) {
      out += text_at(x, l.bottom + 17, tick.label, "class=\"tick\" text-anchor=\"middle\"");
    }
  }
  return out;
}

std::string labels_of(const Layout& l) {
  std::string out;
  double y = 18;
  for (const std::string& line : l.title) {
    out += text_at(10, y, line,
                   cat("class=\"title\" font-weight=\"bold\" font-size=\"", kTitleSize, "\""));
    y += 19;
  }
  y = l.bottom + 36;
  for (const std::string& line : l.x_label) {
    out += text_at((l.left + l.right()) / 2, y, line, "class=\"label\" text-anchor=\"middle\"");
    y += kLine;
  }
  const double middle = (l.top + l.bottom) / 2;
  double x = 17;
  for (const std::string& line : l.y_label) {
    out += text_at(0, 0, line,
                   cat("class=\"label\" text-anchor=\"middle\" transform=\"translate(", number(x),
                       " ", number(middle), ") rotate(-90)\""));
    x += kLine;
  }
  return out;
}

// A filled mark around a point.
std::string mark_path(std::size_t shape, double x, double y, double r) {
  const auto at = [&](double dx, double dy) { return cat(number(x + dx), " ", number(y + dy)); };
  if (shape == 1) return cat("M", at(-r, -r), "L", at(r, -r), "L", at(r, r), "L", at(-r, r), "Z");
  if (shape == 2) return cat("M", at(0, -1.3 * r), "L", at(1.2 * r, r), "L", at(-1.2 * r, r), "Z");
  if (shape == 3) {
    return cat("M", at(0, -1.4 * r), "L", at(1.4 * r, 0), "L", at(0, 1.4 * r), "L", at(-1.4 * r, 0),
               "Z");
  }
  if (shape == 4) return cat("M", at(0, 1.3 * r), "L", at(1.2 * r, -r), "L", at(-1.2 * r, -r), "Z");
  return cat("M", at(-r, 0), "A", r, " ", r, " 0 1 0 ", at(r, 0), "A", r, " ", r, " 0 1 0 ",
             at(-r, 0), "Z");
}

std::string stroke_of(const Look& look, double width) {
  const std::string dash = kDashes[look.dash];
  return cat("class=\"s", look.color, "\" fill=\"none\" stroke=\"", kColors[look.color],
             "\" stroke-width=\"", width, "\"",
             dash.empty() ? "" : cat(" stroke-dasharray=\"", dash, "\""));
}

// What is drawn of one series.
class Drawing {
 public:
  Drawing(const Chart& chart, const Layout& layout, std::size_t index)
      : chart_(chart), l_(layout), s_(chart.series[index]), look_(look_of(index)) {
    points_ = std::min(s_.x.size(), s_.y.size());
    for (std::size_t i = 0; i < points_; ++i) shown_.push_back(is_drawn(chart_, s_.x[i], s_.y[i]));
  }

  std::string svg(bool tips) const {
    if (!chart_.lines) return cloud();
    std::string out;
    const bool bars = chart_.marks || (few() && !s_.steps);
    if (!s_.error.empty() || !s_.x_error.empty()) out += bars ? error_bars() : band();
    return out + line() + marks(bars, tips);
  }

 private:
  bool few() const { return points_ <= kFewPoints; }
  double x(std::size_t i) const { return l_.px(s_.x[i]); }
  double y(std::size_t i) const { return l_.py(s_.y[i]); }
  std::string place(double px, double py) const { return cat(number(px), " ", number(py)); }

  // Runs of neighbouring points that are drawn: [begin, end).
  std::vector<std::pair<std::size_t, std::size_t>> runs() const {
    std::vector<std::pair<std::size_t, std::size_t>> out;
    for (std::size_t i = 0; i < points_; ++i) {
      if (!shown_[i]) continue;
      if (i == 0 || !shown_[i - 1]) out.emplace_back(i, i);
      out.back().second = i + 1;
    }
    return out;
  }

  std::string line() const {
    std::string path;
    for (const auto& [begin, end] : runs()) {
      if (end - begin < 2 && !s_.steps) continue;
      for (std::size_t i = begin; i < end; ++i) {
        path += cat(i == begin ? "M" : "L", place(x(i), y(i)));
        if (s_.steps && i + 1 < s_.x.size()) path += cat("L", place(l_.px(s_.x[i + 1]), y(i)));
      }
    }
    return path.empty() ? "" : cat("<path ", stroke_of(look_, 2), " d=\"", path, "\"/>");
  }

  std::string band() const {
    std::string out;
    for (const auto& [begin, end] : runs()) {
      std::string path;
      for (std::size_t i = begin; i < end; ++i) {
        path +=
            cat(i == begin ? "M" : "L", place(x(i), l_.py_inside(s_.y[i] + error_of(s_.error, i))));
      }
      for (std::size_t i = end; i-- > begin;) {
        path += cat("L", place(x(i), l_.py_inside(s_.y[i] - error_of(s_.error, i))));
      }
      out += cat("<path class=\"band b", look_.color, "\" fill=\"", kColors[look_.color],
                 "\" opacity=\"0.18\" d=\"", path, "Z\"/>");
    }
    return out;
  }

  std::string error_bars() const {
    std::string path;
    for (std::size_t i = 0; i < points_; ++i) {
      if (!shown_[i]) continue;
      if (const double e = error_of(s_.error, i); e > 0) {
        const double low = l_.py_inside(s_.y[i] - e);
        const double high = l_.py_inside(s_.y[i] + e);
        path += cat("M", place(x(i), low), "L", place(x(i), high), "M", place(x(i) - 3, low), "L",
                    place(x(i) + 3, low));
        path += cat("M", place(x(i) - 3, high), "L", place(x(i) + 3, high));
      }
      if (const double e = error_of(s_.x_error, i); e > 0) {
        const double from = std::isfinite(l_.x.place(s_.x[i] - e))
                                ? std::max(l_.left, l_.px(s_.x[i] - e))
                                : l_.left;
        const double to = std::min(l_.right(), l_.px(s_.x[i] + e));
        path += cat("M", place(from, y(i)), "L", place(to, y(i)));
      }
    }
    Look solid = look_;
    solid.dash = 0;
    return path.empty() ? "" : cat("<path ", stroke_of(solid, 1.2), " d=\"", path, "\"/>");
  }

  std::string tip(std::size_t i) const {
    const std::string error =
        i < s_.error.size() && s_.error[i] > 0 ? cat(" ± ", compact(s_.error[i], 2)) : "";
    const std::string name = s_.name.empty() ? "" : s_.name + ": ";
    return cat("<title>",
               xml_text(cat(name, chart_.x.text, " ", compact(s_.x[i], 6), ", ", chart_.y.text, " ",
                            compact(s_.y[i], 6), error)),
               "</title>");
  }

  std::string marks(bool all, bool tips) const {
    if (s_.steps) return "";
    std::string out;
    for (const auto& [begin, end] : runs()) {
      if (!all && end - begin > 1) continue;
      for (std::size_t i = begin; i < end; ++i) {
        out += cat("<path class=\"m", look_.color, "\" fill=\"", kColors[look_.color], "\" d=\"",
                   mark_path(look_.shape, x(i), y(i), 3.4), "\"");
        out += tips ? cat(">", tip(i), "</path>") : "/>";
      }
    }
    return out;
  }

  // One path of dots: thousands of points stay a small file.
  std::string cloud() const {
    std::string path;
    for (std::size_t i = 0; i < points_; ++i) {
      if (shown_[i]) path += cat("M", place(x(i), y(i)), "h0");
    }
    return cat("<path class=\"s", look_.color, "\" fill=\"none\" stroke=\"", kColors[look_.color],
               "\" stroke-width=\"3\" stroke-linecap=\"round\" stroke-opacity=\"0.55\" d=\"", path,
               "\"/>");
  }

  const Chart& chart_;
  const Layout& l_;
  const Series& s_;
  Look look_;
  std::size_t points_ = 0;
  std::vector<bool> shown_;
};

std::string legend_of(const Chart& chart, const Layout& l) {
  if (l.legend.empty()) return "";
  std::string out = "<g class=\"legend\">";
  for (const Entry& entry : l.legend) {
    const Look look = look_of(entry.series);
    const Series& s = chart.series[entry.series];
    const double y = entry.y - 4;
    if (chart.lines) {
      out +=
          cat("<path ", stroke_of(look, 2), " d=\"M", number(entry.x), " ", number(y), "h28\"/>");
    }
    const bool marked = !s.steps && (!chart.lines || chart.marks || s.y.size() <= kFewPoints);
    if (marked) {
      out += cat("<path class=\"m", look.color, "\" fill=\"", kColors[look.color], "\" d=\"",
                 mark_path(chart.lines ? look.shape : 0, entry.x + 14, y, 3.4), "\"/>");
    }
    double line_y = entry.y;
    for (const std::string& line : entry.lines) {
      out += text_at(entry.x + kSwatch, line_y, line, "class=\"label\"");
      line_y += kLine;
    }
  }
  return out + "</g>";
}

std::string description(const Chart& chart, const Layout& l) {
  std::vector<std::string> names;
  for (const std::size_t i : l.shown) {
    if (!chart.series[i].name.empty()) names.push_back(chart.series[i].name);
  }
  return cat(chart.title, ". Plot of ", axis_text(chart.y), " against ", axis_text(chart.x),
             names.empty() ? "" : cat(": ", join(names, "; ")), ".");
}

std::string draw(const Chart& chart) {
  const Layout l = layout_of(chart);
  std::size_t points = 0;
  for (const std::size_t i : l.shown) points += chart.series[i].y.size();
  std::string out =
      cat("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 ", number(kWidth), " ",
          number(l.height), "\" width=\"", number(kWidth), "\" height=\"", number(l.height),
          "\" role=\"img\" aria-label=\"", xml_text(description(chart, l)),
          "\" font-family=\"system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif\" font-size=\"",
          kTextSize, "\" fill=\"#1f2328\">");
  out += cat("<rect class=\"paper\" width=\"", number(kWidth), "\" height=\"", number(l.height),
             "\" fill=\"#ffffff\"/>");
  out += frame_of(l) + labels_of(l);
  for (const std::size_t i : l.shown) out += Drawing(chart, l, i).svg(points <= kManyTips);
  return out + legend_of(chart, l) + "</svg>";
}

}  // namespace
}  // namespace svg

std::string svg_chart(const Chart& chart) { return has_points(chart) ? svg::draw(chart) : ""; }

}  // namespace tiltflow
