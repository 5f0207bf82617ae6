#include "tiltflow/noise/diagnostics.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/json_lines.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

double value(const at::Tensor& t) { return t.item<double>(); }

// P(chi^2_k >= x)
double chi2_survival(double x, double k) {
  return value(
      at::special_gammaincc(at::tensor({k / 2}, at::kDouble), at::tensor({x / 2}, at::kDouble)));
}

// P(D_n >= d) for the Kolmogorov statistic, with Stephens' correction for finite n.
double kolmogorov_p(double d, double n) {
  const double x = d * (std::sqrt(n) + 0.12 + 0.11 / std::sqrt(n));
  if (x < 0.2) return 1;
  double sum = 0;
  for (int k = 1; k <= 100; ++k) sum += (k % 2 ? 2 : -2) * std::exp(-2.0 * k * k * x * x);
  return std::clamp(sum, 0.0, 1.0);
}

// Largest distance between the empirical law of columns and a law given by its distribution
// function at the sorted values. [n, m] -> [m]
at::Tensor ks_statistic(const at::Tensor& sorted_cdf) {
  const std::int64_t n = sorted_cdf.size(0);
  const at::Tensor i = at::arange(n, at::kDouble).unsqueeze(1);
  return at::maximum((i + 1) / static_cast<double>(n) - sorted_cdf,
                     sorted_cdf - i / static_cast<double>(n))
      .amax(0);
}

at::Tensor normal_cdf(const at::Tensor& x) { return at::special_ndtr(x); }

NormalityTest length_test(const at::Tensor& x) {
  const double d = static_cast<double>(x.size(1));
  const at::Tensor squares = std::get<0>(x.square().sum(1, true).sort(0));
  const double ks =
      value(ks_statistic(at::special_gammainc(at::full_like(squares, d / 2), squares / 2)).max());
  return {"length", "Kolmogorov-Smirnov distance of squared lengths from chi^2", ks, 0,
          kolmogorov_p(ks, static_cast<double>(x.size(0)))};
}

// Rayleigh: D n |mean direction|^2 is chi^2_D for uniform directions.
NormalityTest resultant_test(const at::Tensor& u) {
  const double n = static_cast<double>(u.size(0));
  const double d = static_cast<double>(u.size(1));
  const double r = value(u.mean(0).norm());
  return {"resultant", "sqrt(D) times the length of the mean direction (Rayleigh)",
          std::sqrt(d) * r, std::sqrt(d / n), chi2_survival(d * n * r * r, d)};
}

// Bingham: n D (D + 2) / 2 (tr T^2 - 1/D) is chi^2 with (D - 1)(D + 2)/2 degrees, T = mean u u^T.
NormalityTest axes_test(const at::Tensor& u) {
  const double n = static_cast<double>(u.size(0));
  const double d = static_cast<double>(u.size(1));
  const double degrees = (d - 1) * (d + 2) / 2;
  const double statistic =
      n * d * (d + 2) / 2 * (value((u.t().matmul(u) / n).square().sum()) - 1 / d);
  return {"axes", "scatter of the directions over the axes (Bingham)", statistic, degrees,
          chi2_survival(statistic, degrees)};
}

NormalityTest entries_test(const at::Tensor& x) {
  const at::Tensor ks = ks_statistic(normal_cdf(std::get<0>(x.sort(0))));
  const double worst = value(ks.max());
  const double p = kolmogorov_p(worst, static_cast<double>(x.size(0)));
  return {"entries", "largest Kolmogorov-Smirnov distance of a dimension from N(0, 1)", worst, 0,
          std::min(1.0, p * static_cast<double>(x.size(1)))};
}

// Mean squared Wasserstein distance of 1-D projections from the normal quantiles.
double sliced(const at::Tensor& x, const at::Tensor& directions, const at::Tensor& quantiles) {
  return value((std::get<0>(x.matmul(directions.t()).sort(0)) - quantiles).square().mean());
}

NormalityTest sliced_test(const at::Tensor& rows, const RandomStreams& streams, int replicas) {
  const at::Tensor x = rows.narrow(
      0, 0, std::min<std::int64_t>(rows.size(0), 4096));  // the replicas cost as much as it does
  const std::int64_t n = x.size(0);
  const std::int64_t d = x.size(1);
  at::Tensor directions = streams.normal(Purpose::kProbe, 0, 0, 0, 64, {d}).to(at::kDouble);
  directions = directions / directions.norm(2, {1}, true);
  const at::Tensor quantiles =
      at::special_ndtri((at::arange(n, at::kDouble) + 0.5) / static_cast<double>(n)).unsqueeze(1);
  const double found = sliced(x, directions, quantiles);
  double mean = 0;
  double square = 0;
  int above = 0;
  for (int r = 0; r < replicas; ++r) {
    const double one =
        sliced(streams.normal(Purpose::kExact, static_cast<std::uint32_t>(r), 0, 0, n, {d})
                   .to(at::kDouble),
               directions, quantiles);
    mean += one / replicas;
    square += one * one / replicas;
    above += one >= found;
  }
  // Beyond the replicas the tail of a gamma law with their mean and variance: they alone cannot
  // show less than 1/(replicas + 1). The variance is that of a prediction from so many replicas
  // (Student's factor), not of the replicas themselves.
  const double variance = std::max(1e-300, (square - mean * mean) * replicas / (replicas - 1) *
                                               (replicas + 1.0) / (replicas - 3.0));
  const double shape = mean * mean / variance;
  const double tail = chi2_survival(2 * found * mean / variance, 2 * shape);
  const double p =
      above > 0 ? (above + 1.0) / (replicas + 1.0) : std::min(1.0 / (replicas + 1.0), tail);
  return {"sliced", "root mean squared Wasserstein distance of projections from N(0, 1)",
          std::sqrt(found), std::sqrt(mean), p};
}

// The angle between the two closest of n random directions is about as small as one of n^2/2 pairs
// gives.
double expected_smallest_angle(double n, double d) {
  const double pairs = n * (n - 1) / 2;
  double low = 0;
  double high = std::numbers::pi;
  const auto share =
      [&](double angle) {  // P(angle between two random directions <= angle), numerically
        double sum = 0;
        double total = 0;
        for (int i = 0; i < 2000; ++i) {
          const double a = (i + 0.5) * std::numbers::pi / 2000;
          const double w = std::pow(std::sin(a), d - 2);
          total += w;
          sum += a <= angle ? w : 0;
        }
        return sum / total;
      };
  for (int i = 0; i < 40; ++i) {
    const double middle = (low + high) / 2;
    (pairs * share(middle) < 0.7 ? low : high) = middle;
  }
  return low * 180 / std::numbers::pi;
}

}  // namespace

PatchStatistics patch_statistics(const at::Tensor& rows) {
  if (rows.dim() != 2 || rows.size(0) < 2) {
    fail(ErrorKind::kConfig, "noise statistics need two rows or more");
  }
  const at::Tensor x = rows.to(at::kDouble);
  PatchStatistics s;
  s.num_samples = x.size(0);
  s.dim = x.size(1);
  s.overall_mean = value(x.mean());
  s.overall_var = value(x.var());
  s.overall_std = std::sqrt(s.overall_var);
  s.mean_per_dim = x.mean(0);
  s.var_per_dim = x.var(0);
  s.mean_abs_mean_per_dim = value(s.mean_per_dim.abs().mean());
  s.max_abs_mean_per_dim = value(s.mean_per_dim.abs().max());
  s.mean_abs_var_minus_1 = value((s.var_per_dim - 1).abs().mean());
  s.max_abs_var_minus_1 = value((s.var_per_dim - 1).abs().max());
  const at::Tensor centred = x - s.mean_per_dim;
  const at::Tensor covariance =
      centred.t().matmul(centred) / static_cast<double>(s.num_samples - 1);
  s.cov_identity_fro = value((covariance - at::eye(s.dim, at::kDouble)).norm());
  s.cov_trace = value(covariance.trace());
  s.eigenvalues = at::linalg_eigvalsh((covariance + covariance.t()) / 2);
  const at::Tensor norms = x.norm(2, {1});
  s.norm_mean = value(norms.mean());
  s.norm_std = value(norms.std());
  return s;
}

nlohmann::ordered_json to_json(const PatchStatistics& s) {
  return {{"overall_mean", s.overall_mean},
          {"overall_var", s.overall_var},
          {"overall_std", s.overall_std},
          {"num_samples", s.num_samples},
          {"dim", s.dim},
          {"mean_abs_mean_per_dim", s.mean_abs_mean_per_dim},
          {"max_abs_mean_per_dim", s.max_abs_mean_per_dim},
          {"mean_abs_var_minus_1", s.mean_abs_var_minus_1},
          {"max_abs_var_minus_1", s.max_abs_var_minus_1},
          {"cov_identity_fro", s.cov_identity_fro},
          {"cov_trace", s.cov_trace},
          {"norm_mean", s.norm_mean},
          {"norm_std", s.norm_std}};
}

nlohmann::ordered_json compare(const PatchStatistics& a, const PatchStatistics& b) {
  const auto difference = [](const at::Tensor& x, const at::Tensor& y) { return (x - y).abs(); };
  const at::Tensor mean = difference(a.mean_per_dim, b.mean_per_dim);
  const at::Tensor variance = difference(a.var_per_dim, b.var_per_dim);
  const at::Tensor eigenvalues = difference(a.eigenvalues, b.eigenvalues);
  return {{"mean_abs_diff_mean_per_dim", value(mean.mean())},
          {"max_abs_diff_mean_per_dim", value(mean.max())},
          {"mean_abs_diff_var_per_dim", value(variance.mean())},
          {"max_abs_diff_var_per_dim", value(variance.max())},
          {"mean_abs_diff_cov_eigs", value(eigenvalues.mean())},
          {"max_abs_diff_cov_eigs", value(eigenvalues.max())},
          {"overall_mean_abs_diff", std::abs(a.overall_mean - b.overall_mean)},
          {"overall_var_abs_diff", std::abs(a.overall_var - b.overall_var)}};
}

NoiseReport noise_report(const at::Tensor& rows, const RandomStreams& streams, double level,
                         int replicas) {
  if (rows.dim() != 2 || rows.size(0) < 8 || rows.size(1) < 2) {
    fail(ErrorKind::kConfig, "a noise report needs 8 rows or more of 2 numbers or more");
  }
  if (!at::isfinite(rows).all().item<bool>()) {
    fail(ErrorKind::kNonFinite, "the noise has entries that are not finite");
  }
  NoiseReport report;
  report.statistics = patch_statistics(rows);
  const at::Tensor x = rows.to(at::kDouble);
  const at::Tensor u = x / x.norm(2, {1}, true).clamp_min(1e-300);
  const double n = static_cast<double>(x.size(0));
  const double d = static_cast<double>(x.size(1));
  const double ratio = std::sqrt(d / n);
  report.tests = {length_test(x), resultant_test(u), axes_test(u), entries_test(x),
                  sliced_test(x, streams, replicas)};
  report.spectrum_low = ratio < 1 ? (1 - ratio) * (1 - ratio) : 0;
  report.spectrum_high = (1 + ratio) * (1 + ratio);
  const std::int64_t some = std::min<std::int64_t>(x.size(0), 4096);
  const at::Tensor near = u.narrow(0, 0, some);
  const at::Tensor cosines = near.matmul(near.t()).fill_diagonal_(-1);
  report.smallest_angle =
      std::acos(std::clamp(value(cosines.max()), -1.0, 1.0)) * 180 / std::numbers::pi;
  report.smallest_angle_expected = expected_smallest_angle(static_cast<double>(some), d);
  const auto fails = [&](const char* name) {
    for (const NormalityTest& test : report.tests) {
      if (test.name == name) return test.p < level / static_cast<double>(report.tests.size());
    }
    return false;
  };
  const bool radial = fails("length");
  const bool angular = fails("resultant") || fails("axes");
  const bool other = fails("entries") || fails("sliced");
  report.verdict = radial && angular ? "neither lengths nor directions are those of N(0, I)"
                   : radial          ? "lengths are off, directions are uniform"
                   : angular         ? "radially exact, angularly tilted"
                   : other           ? "not N(0, I): single dimensions or projections are off"
                                     : "consistent with N(0, I)";
  return report;
}

nlohmann::ordered_json to_json(const NoiseReport& r) {
  nlohmann::ordered_json out{{"verdict", r.verdict},
                             {"statistics", to_json(r.statistics)},
                             {"spectrum",
                              {{"smallest", value(r.statistics.eigenvalues.min())},
                               {"largest", value(r.statistics.eigenvalues.max())},
                               {"edge_low", r.spectrum_low},
                               {"edge_high", r.spectrum_high}}},
                             {"smallest_angle", r.smallest_angle},
                             {"smallest_angle_expected", r.smallest_angle_expected},
                             {"tests", nlohmann::ordered_json::array()}};
  for (const NormalityTest& t : r.tests) {
    out["tests"].push_back({{"name", t.name},
                            {"meaning", t.meaning},
                            {"statistic", json_number(t.statistic)},
                            {"expected", t.expected},
                            {"p", t.p}});
  }
  return out;
}

std::string to_text(const NoiseReport& r) {
  std::string out =
      cat(r.statistics.num_samples, " rows of ", r.statistics.dim, " numbers: ", r.verdict, "\n");
  out += cat("  mean ", compact(r.statistics.overall_mean), ", variance ",
             compact(r.statistics.overall_var), ", length ", compact(r.statistics.norm_mean),
             " +- ", compact(r.statistics.norm_std), "\n");
  out += cat("  covariance spectrum ", fixed(value(r.statistics.eigenvalues.min()), 3), " to ",
             fixed(value(r.statistics.eigenvalues.max()), 3), "; of independent noise within ",
             fixed(r.spectrum_low, 3), " to ", fixed(r.spectrum_high, 3), "\n");
  out += cat("  closest two directions ", fixed(r.smallest_angle, 1), " degrees apart; about ",
             fixed(r.smallest_angle_expected, 1), " expected\n");
  for (const NormalityTest& t : r.tests) {
    out += cat("  ", pad_right(t.name, 10), pad_left(compact(t.statistic), 9),
               t.expected > 0 ? cat(" (", compact(t.expected), " expected)") : "",
               "  p = ", compact(t.p, 3), "  ", t.meaning, "\n");
  }
  return out;
}

}  // namespace tiltflow
