#include "tiltflow/flow/time_grid.h"

#include <cmath>
#include <numbers>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"

namespace tiltflow {

std::vector<double> uniform_grid(int steps) { return make_grid("uniform", steps); }

std::vector<double> make_grid(const std::string& name, int steps, double shift) {
  if (steps < 1) fail(ErrorKind::kConfig, cat("a sampler needs at least one step, got ", steps));
  std::vector<double> grid;
  for (int k = 0; k <= steps; ++k) {
    const double u = static_cast<double>(k) / steps;
    if (name == "uniform") {
      grid.push_back(u);
    } else if (name == "cosine") {
      grid.push_back(0.5 * (1 - std::cos(std::numbers::pi * u)));
    } else if (name == "shifted") {
      grid.push_back(u / (u + shift * (1 - u)));
    } else {
      fail(ErrorKind::kConfig, cat("time grid '", name, "' is unknown",
                                   did_you_mean(name, {"uniform", "cosine", "shifted"})));
    }
  }
  grid.front() = 0;
  grid.back() = 1;
  return grid;
}

}  // namespace tiltflow
