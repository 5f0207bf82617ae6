#include "tiltflow/noise/row_optimizer.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <numbers>

namespace tiltflow {
namespace {

using Vector = std::vector<double>;

double dot(const Vector& a, const Vector& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}
void add_scaled(Vector& y, double a, const Vector& x) {
  for (std::size_t i = 0; i < y.size(); ++i) y[i] += a * x[i];
}

class RowAdam final : public RowOptimizer {
 public:
  RowAdam(double rate, Retraction retract) : rate_(rate), retract_(std::move(retract)) {}
  bool step(double loss, const Vector& g, Vector& x, double progress) override {
    if (!std::isfinite(loss)) return false;
    if (first_.empty()) {
      first_.assign(g.size(), 0);
      second_.assign(g.size(), 0);
    }
    ++count_;
    const double rate = rate_ * 0.5 * (1 + std::cos(std::numbers::pi * progress));
    const double c1 = 1 - std::pow(0.9, count_);
    const double c2 = 1 - std::pow(0.999, count_);
    for (std::size_t i = 0; i < g.size(); ++i) {
      first_[i] = 0.9 * first_[i] + 0.1 * g[i];
      second_[i] = 0.999 * second_[i] + 0.001 * g[i] * g[i];
      x[i] -= rate * (first_[i] / c1) / (std::sqrt(second_[i] / c2) + 1e-8);
    }
    if (retract_) retract_(x);
    return true;
  }

 private:
  double rate_;
  Retraction retract_;
  Vector first_, second_;
  double count_ = 0;
};

class RowLbfgs final : public RowOptimizer {
 public:
  RowLbfgs(const LbfgsOptions& o, Retraction retract)
      : o_(o), retract_(std::move(retract)), radius_(o.largest_step / 2) {}

  bool step(double loss, const Vector& g, Vector& x, double) override {
    if (x_.empty()) {
      if (!std::isfinite(loss)) return false;
      x_ = x;
      g_ = g;
      loss_ = loss;
    } else if (!std::isfinite(loss)) {
      radius_ *= 0.25;
    } else {
      learn(g, x);
      if (loss < loss_) {
        if (loss_ - loss > 0.3 * predicted_) radius_ = std::min(1.5 * radius_, o_.largest_step);
        x_ = x;
        g_ = g;
        loss_ = loss;
      } else {
        radius_ *= 0.5;
      }
    }
    if (radius_ < 1e-7 || !propose(x)) {
      x = x_;
      return false;
    }
    return true;
  }

 private:
  struct Pair {
    Vector s, y;
    double rho;
  };

  void learn(const Vector& g, const Vector& x) {
    Pair p{x, g, 0};
    add_scaled(p.s, -1, x_);
    add_scaled(p.y, -1, g_);
    const double sy = dot(p.s, p.y);
    const double yy = dot(p.y, p.y);
    if (sy <= 1e-10 * yy || yy == 0) return;
    p.rho = 1 / sy;
    scale_ = sy / yy;
    pairs_.push_back(std::move(p));
    if (static_cast<std::int64_t>(pairs_.size()) > o_.memory) pairs_.pop_front();
  }

  bool propose(Vector& x) {
    const double length = std::sqrt(dot(g_, g_));
    if (length < 1e-14) return false;
    Vector d = g_;
    std::vector<double> a(pairs_.size());
    for (std::size_t i = pairs_.size(); i-- > 0;) {
      a[i] = pairs_[i].rho * dot(pairs_[i].s, d);
      add_scaled(d, -a[i], pairs_[i].y);
    }
    for (double& v : d) v *= pairs_.empty() ? o_.first_step / length : scale_;
    for (std::size_t i = 0; i < pairs_.size(); ++i) {
      add_scaled(d, a[i] - pairs_[i].rho * dot(pairs_[i].y, d), pairs_[i].s);
    }
    const double size = std::sqrt(dot(d, d));
    const double shrink = size > radius_ ? radius_ / size : 1;
    predicted_ = shrink * dot(g_, d);
    if (!(predicted_ > 0) ||
        !std::isfinite(size)) {  // only after rounding: start again from the gradient
      pairs_.clear();
      predicted_ = std::min(radius_, o_.first_step) * length;
      d = g_;
      for (double& v : d) v *= predicted_ / (length * length);
      x = x_;
      add_scaled(x, -1, d);
    } else {
      x = x_;
      add_scaled(x, -shrink, d);
    }
    if (retract_) retract_(x);
    return true;
  }

  LbfgsOptions o_;
  Retraction retract_;
  double radius_;
  double loss_ = 0;
  double scale_ = 1;
  double predicted_ = 0;
  Vector x_, g_;
  std::deque<Pair> pairs_;
};

}  // namespace

std::unique_ptr<RowOptimizer> make_row_adam(double learning_rate, Retraction retract) {
  return std::make_unique<RowAdam>(learning_rate, std::move(retract));
}
std::unique_ptr<RowOptimizer> make_row_lbfgs(const LbfgsOptions& options, Retraction retract) {
  return std::make_unique<RowLbfgs>(options, std::move(retract));
}

}  // namespace tiltflow
