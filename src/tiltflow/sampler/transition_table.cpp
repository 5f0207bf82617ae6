#include "tiltflow/sampler/transition_table.h"

#include <cmath>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"

namespace tiltflow {
namespace {

void check_grid(const std::vector<double>& grid) {
  if (grid.size() < 2) fail(ErrorKind::kConfig, "a time grid needs at least two times");
  for (std::size_t k = 0; k + 1 < grid.size(); ++k) {
    if (!(grid[k] < grid[k + 1]) || grid[k] < 0 || grid[k + 1] > 1) {
      fail(ErrorKind::kConfig, "a time grid must rise from 0 to 1");
    }
  }
}

// Integral of f over [a, b], composite 8-point Gauss-Legendre: to rounding for these smooth
// integrands.
double integrate(const std::function<double(double)>& f, double a, double b) {
  static const double kNodes[] = {0.1834346424956498, 0.5255324099163290, 0.7966664774136267,
                                  0.9602898564975363};
  static const double kWeights[] = {0.3626837833783620, 0.3137066458778873, 0.2223810344533745,
                                    0.1012285362903763};
  constexpr int kPieces = 4;
  double total = 0;
  for (int piece = 0; piece < kPieces; ++piece) {
    const double low = a + (b - a) * piece / kPieces;
    const double half = (b - a) / (2 * kPieces);
    const double mid = low + half;
    for (int i = 0; i < 4; ++i) {
      total += kWeights[i] * half * (f(mid - half * kNodes[i]) + f(mid + half * kNodes[i]));
    }
  }
  return total;
}

}  // namespace

TransitionTable memoryless_euler(const Path& path, const std::vector<double>& grid,
                                 Offsets offsets) {
  TransitionTable table = scaled_memoryless(path, grid, 1);
  table.name = "euler";
  if (offsets == Offsets::kPaper) {
    if (path.name() != "linear") {
      fail(ErrorKind::kConfig,
           cat("the paper's offsets are defined for the linear path, not ", path.name()),
           "use euler or exponential");
    }
    table.name = "euler-paper";
    for (std::size_t k = 0; k < table.steps.size(); ++k) {
      const double h = grid[k + 1] - grid[k];
      const double t = grid[k];
      table.steps[k].s = std::sqrt(2 * h * (1 - t + h) / (t + h));
    }
    const double h = grid.back() - grid[grid.size() - 2];
    const double t = grid.back();
    table.at_end = Transition{t, 1 - h / (t + h), 2 * h, std::sqrt(2 * h * (1 - t + h) / (t + h))};
  }
  return table;
}

TransitionTable scaled_memoryless(const Path& path, const std::vector<double>& grid,
                                  double factor) {
  check_grid(grid);
  TransitionTable table{cat("memoryless x ", compact(factor)), {}, grid.back(), {}, factor == 1};
  const double f2 = factor * factor;
  for (std::size_t k = 0; k + 1 < grid.size(); ++k) {
    const double h = grid[k + 1] - grid[k];
    const PathPoint now = path.at(grid[k]);
    const PathPoint next = path.at(grid[k + 1]);
    const double eta = now.beta_d / next.alpha;  // denominator one step later: no pole at t = 0
    table.steps.push_back({grid[k], 1 - f2 * (1 - now.alpha / next.alpha), (1 + f2) * h,
                           factor * std::sqrt(2 * h * eta)});
  }
  return table;
}

TransitionTable exponential_integrator(const Path& path, const std::vector<double>& grid) {
  check_grid(grid);
  TransitionTable table{"exponential", {}, grid.back(), {}, true};
  for (std::size_t k = 0; k + 1 < grid.size(); ++k) {
    const double a = grid[k];
    const double b = grid[k + 1];
    const double end = path.at(b).alpha;
    const double c = integrate([&](double u) { return 2 * path.at(u).alpha / end; }, a, b);
    const double variance = integrate(
        [&](double u) {
          const PathPoint p = path.at(u);
          return 2 * p.beta_d * p.alpha / (end * end);
        },
        a, b);
    table.steps.push_back({a, path.at(a).alpha / end, c, std::sqrt(variance)});
  }
  return table;
}

TransitionTable ddim(const Path& path, const std::vector<double>& grid, double eta,
                     FinalStep final_step) {
  check_grid(grid);
  if (!(eta >= 0)) fail(ErrorKind::kConfig, cat("eta must be at least 0, got ", eta));
  TransitionTable table{
      eta == 1 ? "ancestral" : cat("ddim eta ", compact(eta)), {}, grid.back(), {}, eta >= 1};
  std::vector<double> times = grid;
  if (final_step == FinalStep::kHalfway) {
    // beta(t_end) = beta(t_{K-1}) / sqrt 2 by bisection: beta falls with t on every path
    double low = times[times.size() - 2];
    double high = times.back();
    const double target = path.at(low).beta / std::sqrt(2.0);
    for (int i = 0; i < 100; ++i) {
      const double mid = 0.5 * (low + high);
      (path.at(mid).beta > target ? low : high) = mid;
    }
    times.back() = 0.5 * (low + high);
    table.t_end = times.back();
  }
  for (std::size_t k = 0; k + 1 < times.size(); ++k) {
    const PathPoint now = path.at(times[k]);
    const PathPoint next = path.at(times[k + 1]);
    const double ratio = now.alpha * next.beta / (next.alpha * now.beta);
    const double s = eta * next.beta * std::sqrt(std::max(0.0, 1 - ratio * ratio));
    const double noise =
        std::sqrt(std::max(0.0, next.beta * next.beta - s * s));  // guarded for eta > 1
    table.steps.push_back({times[k], next.alpha * now.data_x + noise * now.noise_x,
                           next.alpha * now.data_v + noise * now.noise_v, s});
  }
  return table;
}

TransitionTable euler_maruyama(const Path& path, const std::vector<double>& grid,
                               const std::function<double(double)>& sigma) {
  check_grid(grid);
  TransitionTable table{"euler-maruyama", {}, grid.back(), {}, false};
  for (std::size_t k = 0; k + 1 < grid.size(); ++k) {
    const double h = grid[k + 1] - grid[k];
    const double s = sigma(grid[k]);
    const PathPoint p = path.at(grid[k]);
    const double d = p.beta_d / p.beta;  // D; beta > 0 before the end of the grid
    const double gain = 0.5 * s * s / (p.beta * d);
    table.steps.push_back(
        {grid[k], 1 - h * gain * p.d_alpha, h * (1 + gain * p.alpha), s * std::sqrt(h)});
  }
  return table;
}

TransitionTable deterministic_control(const std::vector<double>& grid) {
  TransitionTable table{"deterministic-control", {}, grid.back(), {}, /*memoryless=*/false};
  for (std::size_t k = 0; k + 1 < grid.size(); ++k) {
    const double h = grid[k + 1] - grid[k];
    table.steps.push_back({grid[k], 1, h, std::sqrt(h)});
  }
  return table;
}

TransitionTable make_table(const std::string& name, const Path& path,
                           const std::vector<double>& grid, double parameter) {
  if (name == "auto") {
    return path.name() == "linear" ? memoryless_euler(path, grid)
                                   : exponential_integrator(path, grid);
  }
  if (name == "euler") return memoryless_euler(path, grid);
  if (name == "euler-paper") return memoryless_euler(path, grid, Offsets::kPaper);
  if (name == "exponential") return exponential_integrator(path, grid);
  if (name == "ancestral") return ddim(path, grid, 1, FinalStep::kHalfway);
  if (name == "ddim") return ddim(path, grid, parameter, FinalStep::kClean);
  if (name == "half-noise") return scaled_memoryless(path, grid, 0.5);
  if (name == "constant") {
    return euler_maruyama(path, grid, [parameter](double) { return parameter; });
  }
  fail(ErrorKind::kConfig,
       cat("sampler '", name, "' is unknown", did_you_mean(name, table_names())),
       "known: " + join(table_names(), ", "));
}

const std::vector<std::string>& table_names() {
  static const std::vector<std::string> names{"auto",      "euler", "euler-paper", "exponential",
                                              "ancestral", "ddim",  "half-noise",  "constant"};
  return names;
}

}  // namespace tiltflow
