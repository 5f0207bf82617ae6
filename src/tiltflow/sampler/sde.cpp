#include "tiltflow/sampler/sde.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numbers>

#include "tiltflow/base/error.h"
#include "tiltflow/base/signals.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

std::vector<double> points_between(double begin, double end, int points) {
  if (points < 2) {
    fail(ErrorKind::kConfig, cat("a sampler needs at least two grid points, got ", points));
  }
  std::vector<double> grid;
  for (int k = 0; k < points; ++k) grid.push_back(begin + (end - begin) * k / (points - 1));
  return grid;
}

}  // namespace

const std::vector<std::string>& diffusion_forms() {
  static const std::vector<std::string> forms{
      "constant", "sbdm", "sigma", "linear", "decreasing", "increasing-decreasing", "memoryless"};
  return forms;
}

double diffusion(const std::string& form, double norm, const PathPoint& p) {
  if (form == "constant") return norm;
  if (form == "sbdm") return norm * p.eta();
  if (form == "memoryless") return p.eta();
  if (form == "sigma") return norm * p.beta;
  if (form == "linear") return norm * (1 - p.t);
  const double wave = norm * std::cos(std::numbers::pi * p.t) + 1;
  const double bump = std::sin(std::numbers::pi * p.t);
  if (form == "decreasing") return 0.25 * wave * wave;
  if (form == "increasing-decreasing") return norm * bump * bump;
  fail(ErrorKind::kConfig,
       cat("diffusion form '", form, "' is unknown", did_you_mean(form, diffusion_forms())),
       "known: " + join(diffusion_forms(), ", "));
}

std::vector<double> sde_grid(const Path& path, const std::string& prediction,
                             const SdeOptions& options, int points, double epsilon) {
  const bool singular =
      options.form == "sbdm" || options.form == "memoryless";  // w is infinite at t = 0
  const bool starts_inside = path.name() != "vp" && (singular || prediction != "velocity");
  const double last = options.last_step == "none" ? 0 : options.last_step_size;
  const bool ends_inside = starts_inside || path.name() == "vp" ||
                           options.method == "heun";  // which evaluates the score at the end
  return points_between(starts_inside ? epsilon : 0,
                        last > 0      ? 1 - last
                        : ends_inside ? 1 - epsilon
                                      : 1,
                        points);
}

at::Tensor solve_sde(const VelocityField& field, const Path& path, at::Tensor x,
                     const std::vector<double>& grid, const Condition& condition,
                     const NoiseSource& noise, const SdeOptions& options) {
  const at::NoGradGuard no_grad;
  if (options.method != "euler" && options.method != "heun") {
    fail(ErrorKind::kConfig,
         cat("SDE method '", options.method, "' is unknown",
             did_you_mean(options.method, {"euler", "heun"})),
         "use euler or heun");
  }
  const std::vector<std::string> last_steps{"none", "mean", "tweedie", "euler"};
  if (std::find(last_steps.begin(), last_steps.end(), options.last_step) == last_steps.end()) {
    fail(ErrorKind::kConfig,
         cat("last step '", options.last_step, "' is unknown",
             did_you_mean(options.last_step, last_steps)),
         "use none, mean, tweedie or euler");
  }
  const auto drift = [&](const at::Tensor& state, double t) {
    const PathPoint p = path.at(t);
    const double w = diffusion(options.form, options.norm, p);
    const at::Tensor v = field.velocity(state, time_tensor(t, state), condition);
    return w == 0 ? v : v + score_from_velocity(p, state, v) * w;
  };
  for (std::size_t k = 0; k + 1 < grid.size(); ++k) {
    check_stop();
    const double t = grid[k];
    const double h = grid[k + 1] - t;
    const double w = diffusion(options.form, options.norm, path.at(t));
    if (!(w >= 0) || !std::isfinite(w)) {
      fail(ErrorKind::kConfig, cat("diffusion ", options.form, " is ", w, " at t = ", t),
           "start a little later, or choose another form");
    }
    const at::Tensor kick = noise(static_cast<int>(k)) * std::sqrt(2 * w * h);
    if (options.method == "euler") {
      x = x + drift(x, t) * h + kick;
    } else {
      const at::Tensor from = x + kick;
      const at::Tensor first = drift(from, t);
      const at::Tensor second = drift(from + first * h, t + h);
      x = from + (first + second) * (h / 2);
    }
  }
  const double end = grid.back();
  if (options.last_step == "mean") {
    x = x + drift(x, end) * options.last_step_size;
  } else if (options.last_step == "euler") {
    x = x + field.velocity(x, time_tensor(end, x), condition) * options.last_step_size;
  } else if (options.last_step == "tweedie") {  // E[X_1 | x] = (x + beta^2 score) / alpha
    const at::Tensor v = field.velocity(x, time_tensor(end, x), condition);
    x = data_from_velocity(path.at(end), x, v);
  }
  if (!at::isfinite(x).all().item<bool>()) {
    fail(ErrorKind::kNonFinite,
         cat("the SDE (", options.method, ", diffusion ", options.form,
             ") produced NaN or infinity"),
         "use more steps, a last step, or another diffusion form");
  }
  return x;
}

}  // namespace tiltflow
