#include "tiltflow/report/chart.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

#include "tiltflow/base/strings.h"

namespace tiltflow {
namespace {

bool on_axis(const AxisLabel& axis, double v) {
  if (!std::isfinite(v) || (axis.logarithmic && !(v > 0))) return false;
  if (axis.range.size() != 2) return true;
  const double slack = 1e-9 * (axis.range[1] - axis.range[0]);
  return v >= axis.range[0] - slack && v <= axis.range[1] + slack;
}

// The shortest text that reads back as the same number.
std::string exact(double v) {
  if (std::isnan(v)) return "nan";
  if (std::isinf(v)) return v > 0 ? "inf" : "-inf";
  std::array<char, 32> buffer{};
  const auto end = std::to_chars(buffer.data(), buffer.data() + buffer.size(), v).ptr;
  return {buffer.data(), end};
}

std::string quoted(const std::string& text) {
  if (text.find_first_of(",\"\n\r") == std::string::npos) return text;
  std::string out = "\"";
  for (const char c : text) out += c == '"' ? std::string("\"\"") : std::string(1, c);
  return out + "\"";
}

std::string column(const AxisLabel& axis, const std::string& before, const std::string& after) {
  const std::string unit = axis.unit.empty() ? "" : cat(" (", axis.unit, ")");
  return quoted(cat(before, axis.text, after, unit));
}

// Indices of the smallest and largest finite y of every stretch, with the first and the last point.
std::vector<std::size_t> extremes(const std::vector<double>& y, std::size_t stretches) {
  std::vector<std::size_t> keep{0};
  for (std::size_t b = 0; b < stretches; ++b) {
    const std::size_t begin = b * y.size() / stretches;
    const std::size_t end = (b + 1) * y.size() / stretches;
    std::size_t low = begin;
    std::size_t high = begin;
    for (std::size_t i = begin; i < end; ++i) {
      if (!(y[low] <= y[i])) low = i;
      if (!(y[high] >= y[i])) high = i;
    }
    keep.push_back(std::min(low, high));
    keep.push_back(std::max(low, high));
  }
  keep.push_back(y.size() - 1);
  keep.erase(std::unique(keep.begin(), keep.end()), keep.end());
  return keep;
}

std::vector<double> chosen(const std::vector<double>& values,
                           const std::vector<std::size_t>& index) {
  std::vector<double> out;
  for (const std::size_t i : index) {
    if (i < values.size()) out.push_back(values[i]);
  }
  return out;
}

}  // namespace

std::string axis_text(const AxisLabel& axis) {
  std::vector<std::string> inside;
  if (!axis.unit.empty()) inside.push_back(axis.unit);
  if (axis.logarithmic) inside.emplace_back("log scale");
  return inside.empty() ? axis.text
                        : cat(axis.text, axis.text.empty() ? "(" : " (", join(inside, ", "), ")");
}

bool is_drawn(const Chart& chart, double x, double y) {
  return on_axis(chart.x, x) && on_axis(chart.y, y);
}

bool has_points(const Chart& chart, const Series& series) {
  const std::size_t n = std::min(series.x.size(), series.y.size());
  for (std::size_t i = 0; i < n; ++i) {
    if (is_drawn(chart, series.x[i], series.y[i])) return true;
  }
  return false;
}

bool has_points(const Chart& chart) {
  return std::any_of(chart.series.begin(), chart.series.end(),
                     [&](const Series& s) { return has_points(chart, s); });
}

Chart thinned(Chart chart, std::size_t most) {
  std::size_t longest = 0;
  for (Series& s : chart.series) {
    if (s.steps || !chart.lines || s.y.size() <= most || s.x.size() != s.y.size()) continue;
    longest = std::max(longest, s.y.size());
    const std::vector<std::size_t> keep = extremes(s.y, most / 2);
    s.x = chosen(s.x, keep);
    s.y = chosen(s.y, keep);
    s.error = chosen(s.error, keep);
    s.x_error = chosen(s.x_error, keep);
  }
  if (longest > 0) {
    chart.note += cat(chart.note.empty() ? "" : " ", "The extremes of ", most / 2,
                      " stretches of up to ", longest, " points.");
  }
  return chart;
}

std::string chart_csv(const Chart& chart) {
  const auto any = [&](auto member) {
    return std::any_of(chart.series.begin(), chart.series.end(),
                       [&](const Series& s) { return !(s.*member).empty(); });
  };
  const bool errors = any(&Series::error);
  const bool x_errors = any(&Series::x_error);
  const bool steps = std::any_of(chart.series.begin(), chart.series.end(),
                                 [](const Series& s) { return s.steps; });
  std::string out = "series,";
  out += steps ? cat(column(chart.x, "", " from"), ",", column(chart.x, "", " to"))
               : column(chart.x, "", "");
  out += "," + column(chart.y, "", "");
  if (errors) out += "," + column(chart.y, "standard error of ", "");
  if (x_errors) out += "," + column(chart.x, "standard error of ", "");
  out += "\n";
  for (const Series& s : chart.series) {
    const auto cell = [](const std::vector<double>& values, std::size_t i) {
      return i < values.size() ? exact(values[i]) : "";
    };
    for (std::size_t i = 0; i < s.y.size(); ++i) {
      out += cat(quoted(s.name), ",", cell(s.x, i));
      if (steps) out += "," + cell(s.x, s.steps ? i + 1 : i);
      out += "," + exact(s.y[i]);
      if (errors) out += "," + cell(s.error, i);
      if (x_errors) out += "," + cell(s.x_error, i);
      out += "\n";
    }
  }
  return out;
}

}  // namespace tiltflow
