#include "tiltflow/sampler/ode.h"

#include <algorithm>
#include <cmath>

#include "tiltflow/base/error.h"
#include "tiltflow/base/signals.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

using Velocity = std::function<at::Tensor(const at::Tensor&, double)>;

at::Tensor fixed_step(OdeMethod method, const Velocity& v, const at::Tensor& x, double t,
                      double h) {
  const at::Tensor k1 = v(x, t);
  switch (method) {
    case OdeMethod::kEuler:
      return x + k1 * h;
    case OdeMethod::kMidpoint:
      return x + v(x + k1 * (h / 2), t + h / 2) * h;
    case OdeMethod::kHeun:
      return x + (k1 + v(x + k1 * h, t + h)) * (h / 2);
    default:
      break;
  }
  const at::Tensor k2 = v(x + k1 * (h / 3), t + h / 3);
  const at::Tensor k3 = v(x + (k2 - k1 / 3) * h, t + 2 * h / 3);
  const at::Tensor k4 = v(x + (k1 - k2 + k3) * h, t + h);
  return x + (k1 + (k2 + k3) * 3 + k4) * (h / 8);
}

// Dormand-Prince coefficients (Hairer, Norsett & Wanner, table II.5.2).
constexpr double kNodes[7] = {0, 1.0 / 5, 3.0 / 10, 4.0 / 5, 8.0 / 9, 1, 1};
constexpr double kStages[7][6] = {
    {},
    {1.0 / 5},
    {3.0 / 40, 9.0 / 40},
    {44.0 / 45, -56.0 / 15, 32.0 / 9},
    {19372.0 / 6561, -25360.0 / 2187, 64448.0 / 6561, -212.0 / 729},
    {9017.0 / 3168, -355.0 / 33, 46732.0 / 5247, 49.0 / 176, -5103.0 / 18656},
    {35.0 / 384, 0, 500.0 / 1113, 125.0 / 192, -2187.0 / 6784, 11.0 / 84}};
constexpr double kError[7] = {71.0 / 57600,      0,          -71.0 / 16695, 71.0 / 1920,
                              -17253.0 / 339200, 22.0 / 525, -1.0 / 40};

OdeResult dopri5(const Velocity& v, at::Tensor x, double begin, double end,
                 const OdeOptions& options) {
  OdeResult out;
  const double direction = end >= begin ? 1 : -1;
  const auto norm = [&](const at::Tensor& e, const at::Tensor& a, const at::Tensor& b) {
    return (e / (at::maximum(a.abs(), b.abs()) * options.rtol + options.atol))
        .square()
        .mean()
        .sqrt()
        .item<double>();
  };
  double t = begin;
  std::vector<at::Tensor> k(7);
  k[0] = v(x, t);
  // First step from the size of the solution and of its slope (Hairer et al., II.4)
  const double d0 = norm(x, x, x);
  const double d1 = norm(k[0], x, x);
  double h = std::min(std::abs(end - begin), d0 < 1e-5 || d1 < 1e-5 ? 1e-3 : 0.01 * d0 / d1);
  while (direction * (end - t) > 1e-12) {
    if (out.accepted + out.rejected >= options.max_steps) {
      fail(ErrorKind::kFailure,
           cat("dopri5 needs more than ", options.max_steps, " steps at t = ", t),
           "loosen rtol/atol");
    }
    h = std::min(h, std::abs(end - t));
    const double step = direction * h;
    at::Tensor next;
    for (int stage = 1; stage < 7; ++stage) {
      at::Tensor y = x;
      for (int j = 0; j < stage; ++j) {
        if (kStages[stage][j] != 0) {
          y = y + k[static_cast<std::size_t>(j)] * (step * kStages[stage][j]);
        }
      }
      if (stage == 6) next = y;  // first same as last
      k[static_cast<std::size_t>(stage)] = v(y, t + step * kNodes[stage]);
    }
    at::Tensor error = at::zeros_like(x);
    for (int j = 0; j < 7; ++j) {
      if (kError[j] != 0) error = error + k[static_cast<std::size_t>(j)] * (step * kError[j]);
    }
    const double size = norm(error, x, next);
    if (!std::isfinite(size)) {
      fail(ErrorKind::kNonFinite, cat("dopri5: the velocity is not finite near t = ", t));
    }
    if (size <= 1) {
      t += step;
      x = next;
      k[0] = k[6];
      ++out.accepted;
    } else {
      ++out.rejected;
    }
    h *= std::clamp(0.9 * std::pow(std::max(size, 1e-10), -0.2), 0.2, 10.0);
  }
  out.x = x;
  return out;
}

}  // namespace

OdeMethod parse_ode_method(const std::string& name) {
  if (name == "euler") return OdeMethod::kEuler;
  if (name == "midpoint") return OdeMethod::kMidpoint;
  if (name == "heun") return OdeMethod::kHeun;
  if (name == "rk4") return OdeMethod::kRk4;
  if (name == "dopri5") return OdeMethod::kDopri5;
  const std::vector<std::string> known{"euler", "midpoint", "heun", "rk4", "dopri5"};
  fail(ErrorKind::kConfig, cat("ODE method '", name, "' is unknown", did_you_mean(name, known)),
       "known: " + join(known, ", "));
}

OdeResult solve_ode(const VelocityField& field, at::Tensor x, const std::vector<double>& grid,
                    const Condition& condition, const OdeOptions& options) {
  const at::AutoGradMode grad(options.keep_graph && at::GradMode::is_enabled());
  int evaluations = 0;
  const Velocity v = [&](const at::Tensor& state, double t) {
    check_stop();
    ++evaluations;
    return field.velocity(state, time_tensor(t, state), condition);
  };
  OdeResult out;
  if (options.method == OdeMethod::kDopri5) {
    out = dopri5(v, std::move(x), grid.front(), grid.back(), options);
  } else {
    for (std::size_t k = 0; k + 1 < grid.size(); ++k) {
      x = fixed_step(options.method, v, x, grid[k], grid[k + 1] - grid[k]);
    }
    out.x = x;
    out.accepted = static_cast<int>(grid.size()) - 1;
  }
  out.evaluations = evaluations;
  return out;
}

}  // namespace tiltflow
