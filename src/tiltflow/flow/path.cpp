#include "tiltflow/flow/path.h"

#include <cmath>
#include <limits>
#include <numbers>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

class LinearPath final : public Path {
 public:
  PathPoint at(double t) const override {
    const double beta = 1 - t;
    return {.t = t,
            .alpha = t,
            .beta = beta,
            .d_alpha = 1,
            .d_beta = -1,
            .data_x = 1,
            .data_v = beta,
            .noise_x = 1,
            .noise_v = -t,
            .score_x = beta > 0 ? -1 / beta : -kInf,
            .score_v = beta > 0 ? t / beta : kInf,
            .beta_d = beta,
            .beta_d_beta = -beta};
  }
  std::string name() const override { return "linear"; }
};

class GvpPath final : public Path {
 public:
  PathPoint at(double t) const override {
    constexpr double kHalfPi = std::numbers::pi / 2;
    // sin of the complement: exact zero at t = 1 instead of cos(pi/2) = 6e-17
    const double alpha = std::sin(kHalfPi * t);
    const double beta = std::sin(kHalfPi * (1 - t));
    return {.t = t,
            .alpha = alpha,
            .beta = beta,
            .d_alpha = kHalfPi * beta,
            .d_beta = -kHalfPi * alpha,
            .data_x = alpha,
            .data_v = beta / kHalfPi,
            .noise_x = beta,
            .noise_v = -alpha / kHalfPi,
            .score_x = -1,
            .score_v = beta > 0 ? alpha / (kHalfPi * beta) : kInf,
            .beta_d = kHalfPi * beta,
            .beta_d_beta = -kHalfPi * alpha * beta};
  }
  std::string name() const override { return "gvp"; }
};

class VpPath final : public Path {
 public:
  PathPoint at(double t) const override {
    constexpr double kMin = 0.1;
    constexpr double kMax = 20;
    const double s = 1 - t;
    const double log_alpha = -0.25 * s * s * (kMax - kMin) - 0.5 * s * kMin;
    const double rate = 0.5 * (kMin + s * (kMax - kMin));  // L' = b(t)/2
    const double alpha = std::exp(log_alpha);
    const double beta = std::sqrt(-std::expm1(2 * log_alpha));
    return {.t = t,
            .alpha = alpha,
            .beta = beta,
            .d_alpha = alpha * rate,
            .d_beta = beta > 0 ? -alpha * alpha * rate / beta : -kInf,
            .data_x = alpha,
            .data_v = beta * beta / (alpha * rate),
            .noise_x = beta,
            .noise_v = -beta / rate,
            .score_x = -1,
            .score_v = 1 / rate,
            .beta_d = alpha * rate,
            .beta_d_beta = -alpha * alpha * rate};
  }
  std::string name() const override { return "vp"; }
};

at::Tensor combine(double a, const at::Tensor& x, double b, const at::Tensor& y, const char* what,
                   double t) {
  if (!std::isfinite(a) || !std::isfinite(b)) {
    fail(ErrorKind::kFailure, cat(what, " has no limit at t = ", t),
         "evaluate at an interior time");
  }
  return x * a + y * b;
}

}  // namespace

std::shared_ptr<const Path> make_path(const std::string& name) {
  if (name == "linear") return std::make_shared<LinearPath>();
  if (name == "gvp") return std::make_shared<GvpPath>();
  if (name == "vp") return std::make_shared<VpPath>();
  fail(ErrorKind::kConfig, cat("path '", name, "' is unknown", did_you_mean(name, path_names())),
       "use linear, gvp or vp");
}

const std::vector<std::string>& path_names() {
  static const std::vector<std::string> names{"linear", "gvp", "vp"};
  return names;
}

at::Tensor data_from_velocity(const PathPoint& p, const at::Tensor& x, const at::Tensor& v) {
  return combine(p.data_x, x, p.data_v, v, "data from velocity", p.t);
}
at::Tensor noise_from_velocity(const PathPoint& p, const at::Tensor& x, const at::Tensor& v) {
  return combine(p.noise_x, x, p.noise_v, v, "noise from velocity", p.t);
}
at::Tensor score_from_velocity(const PathPoint& p, const at::Tensor& x, const at::Tensor& v) {
  return combine(p.score_x, x, p.score_v, v, "score from velocity", p.t);
}
at::Tensor velocity_from_data(const PathPoint& p, const at::Tensor& x, const at::Tensor& data) {
  return combine(-p.data_x / p.data_v, x, 1 / p.data_v, data, "velocity from data", p.t);
}
at::Tensor velocity_from_noise(const PathPoint& p, const at::Tensor& x, const at::Tensor& noise) {
  return combine(-p.noise_x / p.noise_v, x, 1 / p.noise_v, noise, "velocity from noise", p.t);
}
at::Tensor velocity_from_score(const PathPoint& p, const at::Tensor& x, const at::Tensor& score) {
  return combine(p.kappa(), x, p.eta(), score, "velocity from score", p.t);
}

double PathPoint::control_gain() const {
  constexpr double kFloor = 0.02;
  return std::sqrt((beta_d + kFloor) / (alpha + kFloor));
}

at::Tensor path_coefficient(const std::vector<PathPoint>& points,
                            const std::function<double(const PathPoint&)>& coefficient,
                            const at::Tensor& like) {
  std::vector<double> values;
  for (const PathPoint& point : points) values.push_back(coefficient(point));
  std::vector<std::int64_t> shape(static_cast<std::size_t>(like.dim()), 1);
  shape[0] = static_cast<std::int64_t>(values.size());
  return at::tensor(values, at::kDouble).to(like.scalar_type()).reshape(shape);
}

std::vector<PathPoint> path_points(const Path& path, const at::Tensor& t) {
  const at::Tensor flat = t.to(at::kDouble).cpu();
  const bool one_value = flat.dim() == 0 || flat.numel() == 1 || t.stride(0) == 0;
  const at::Tensor values = (one_value ? flat.reshape({-1}).narrow(0, 0, 1) : flat).contiguous();
  std::vector<PathPoint> points;
  for (std::int64_t i = 0; i < values.numel(); ++i) {
    points.push_back(path.at(values.data_ptr<double>()[i]));
  }
  return points;
}

}  // namespace tiltflow
