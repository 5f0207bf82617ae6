// Interpolation paths x_t = alpha(t) x_1 + beta(t) x_0 exactly as SiT defines them, and conversions
// between velocity, score, noise and data. t = 0 is noise, t = 1 is data. No network here. Source:
// SiT transport/path.py; Domingo-Enrich et al. 2024 (Adjoint Matching), appendix on flow
// conventions.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace tiltflow {

// Coefficients at one time. D = alpha' beta - beta' alpha; eta = beta D / alpha (the memoryless
// schedule is sigma^2 = 2 eta). Ratios are stored as such because they stay finite where numerator
// and denominator do not.
struct PathPoint {
  double t;
  double alpha, beta, d_alpha, d_beta;
  double data_x, data_v;    // x1_hat = data_x x + data_v v      (-beta'/D, beta/D)
  double noise_x, noise_v;  // eps_hat = noise_x x + noise_v v   (alpha'/D, -alpha/D)
  double score_x,
      score_v;         // s = score_x x + score_v v         (infinite at t = 1 for Linear and GVP)
  double beta_d;       // beta D
  double beta_d_beta;  // beta beta'
  double kappa() const { return d_alpha / alpha; }  // infinite at t = 0 for Linear and GVP
  double eta() const { return beta_d / alpha; }     // likewise
  // sigma/2 = sqrt(eta/2) up to a factor, kept finite and away from zero at both ends: what a
  // network that stands for the control u is multiplied with to become a velocity.
  double control_gain() const;
};

class Path {
 public:
  virtual ~Path() = default;
  virtual PathPoint at(double t) const = 0;
  virtual std::string name() const = 0;
};

// "linear": (t, 1-t);  "gvp": (sin(pi t/2), cos(pi t/2));  "vp": variance preserving, beta from 0.1
// to 20. Throws kConfig for another name.
std::shared_ptr<const Path> make_path(const std::string& name);
const std::vector<std::string>& path_names();

// Whole-tensor conversions at one time. Throw kFailure where the limit does not exist (score at t =
// 1, ...).
at::Tensor data_from_velocity(const PathPoint&, const at::Tensor& x, const at::Tensor& v);
at::Tensor noise_from_velocity(const PathPoint&, const at::Tensor& x, const at::Tensor& v);
at::Tensor score_from_velocity(const PathPoint&, const at::Tensor& x, const at::Tensor& v);
at::Tensor velocity_from_data(const PathPoint&, const at::Tensor& x, const at::Tensor& data);
at::Tensor velocity_from_noise(const PathPoint&, const at::Tensor& x, const at::Tensor& noise);
at::Tensor velocity_from_score(const PathPoint&, const at::Tensor& x, const at::Tensor& score);

// One coefficient per sample, shaped to broadcast against [N, ...]: member = &PathPoint::alpha etc.
at::Tensor path_coefficient(const std::vector<PathPoint>& points,
                            const std::function<double(const PathPoint&)>& coefficient,
                            const at::Tensor& like);
// Points of a time tensor [N]; when all entries are one value (an expanded scalar), a single point.
std::vector<PathPoint> path_points(const Path& path, const at::Tensor& t);

}  // namespace tiltflow
