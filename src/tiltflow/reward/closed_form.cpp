#include "tiltflow/reward/closed_form.h"

#include <cmath>
#include <numbers>

#include "tiltflow/base/count.h"
#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/models/mixture/mixture_model.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

// One number for all entries or one per entry.
at::Tensor per_entry(const std::vector<double>& values, const at::Tensor& flat, const char* what) {
  if (values.size() != 1 && static_cast<std::int64_t>(values.size()) != flat.size(1)) {
    fail(ErrorKind::kConfig,
         cat("reward: ", what, " has ", counted(values.size(), "number"), ", samples have ",
             counted(flat.size(1), "entry", "entries")),
         "give one number or one per entry");
  }
  return at::tensor(values, at::kDouble).to(flat.options().requires_grad(false));
}

class Ink final : public Reward {
 public:
  const RewardInfo& info() const override { return info_; }
  at::Tensor score(const at::Tensor& samples, const RewardCondition&) const override {
    return samples.flatten(1).mean(1);
  }

 private:
  RewardInfo info_{"ink", true, ""};
};

class LinearReward final : public Reward {
 public:
  explicit LinearReward(std::vector<double> slope) : slope_(std::move(slope)) {}
  const RewardInfo& info() const override { return info_; }
  at::Tensor score(const at::Tensor& samples, const RewardCondition&) const override {
    const at::Tensor flat = samples.flatten(1);
    return (flat * per_entry(slope_, flat, "slope")).sum(1);
  }

 private:
  std::vector<double> slope_;
  RewardInfo info_{"linear", true, ""};
};

class Brightness final : public Reward {
 public:
  explicit Brightness(double target) : target_(target) {
    info_.name = target < 0 ? "brightness" : cat("brightness near ", compact(target));
  }
  const RewardInfo& info() const override { return info_; }
  at::Tensor score(const at::Tensor& samples, const RewardCondition&) const override {
    const at::Tensor mean = samples.flatten(1).mean(1);
    return target_ < 0 ? mean : -(mean - target_).square();
  }

 private:
  double target_;
  RewardInfo info_{"brightness", true, ""};
};

class QuadraticReward final : public Reward {
 public:
  QuadraticReward(std::vector<double> center, double curvature)
      : center_(std::move(center)), curvature_(curvature) {}
  const RewardInfo& info() const override { return info_; }
  at::Tensor score(const at::Tensor& samples, const RewardCondition&) const override {
    const at::Tensor flat = samples.flatten(1);
    return (flat - per_entry(center_, flat, "center")).square().sum(1) * (-0.5 * curvature_);
  }

 private:
  std::vector<double> center_;
  double curvature_;
  RewardInfo info_{"quadratic", true, ""};
};

class StepReward final : public Reward {
 public:
  StepReward(std::vector<double> slope, double level) : slope_(std::move(slope)), level_(level) {}
  const RewardInfo& info() const override { return info_; }
  at::Tensor score(const at::Tensor& samples, const RewardCondition&) const override {
    const at::Tensor flat = samples.flatten(1);
    return ((flat * per_entry(slope_, flat, "slope")).sum(1) > level_).to(samples.scalar_type());
  }

 private:
  std::vector<double> slope_;
  double level_;
  RewardInfo info_{"step", false, ""};
};

class LogDensity final : public Reward {
 public:
  LogDensity(GaussianMixture mixture, bool over_normal)
      : mixture_(std::move(mixture)), over_normal_(over_normal) {}
  const RewardInfo& info() const override { return info_; }
  at::Tensor score(const at::Tensor& samples, const RewardCondition&) const override {
    const at::Tensor x = samples.flatten(1).to(at::kDouble);
    if (x.size(1) != mixture_.dimension()) {
      fail(ErrorKind::kConfig,
           cat("reward log-density: its mixture has dimension ", mixture_.dimension(),
               ", samples have ", counted(x.size(1), "entry", "entries")));
    }
    at::Tensor out = log_density(mixture_, x);
    if (over_normal_) {
      out = out + 0.5 * x.square().sum(1) +
            0.5 * static_cast<double>(x.size(1)) * std::log(2 * std::numbers::pi);
    }
    return out.to(samples.scalar_type());
  }

 private:
  GaussianMixture mixture_;
  bool over_normal_;
  RewardInfo info_{"log-density", true, ""};
};

}  // namespace

std::shared_ptr<const Reward> make_step_reward(const RewardTerm& term) {
  if (term.slope.empty()) {
    fail(ErrorKind::kConfig, "reward step: slope is missing",
         "slope = [1.0] or one number per entry");
  }
  return std::make_shared<StepReward>(term.slope, term.level);
}

std::shared_ptr<const Reward> make_log_density(const RewardTerm& term) {
  return std::make_shared<LogDensity>(mixture_from_args(term.args), term.over_normal);
}

std::shared_ptr<const Reward> make_brightness(const RewardTerm& term) {
  return std::make_shared<Brightness>(term.target);
}
std::shared_ptr<const Reward> make_ink(const RewardTerm&) { return std::make_shared<Ink>(); }

std::shared_ptr<const Reward> make_linear_reward(const RewardTerm& term) {
  if (term.slope.empty()) {
    fail(ErrorKind::kConfig, "reward linear: slope is missing",
         "slope = [1.0] or one number per entry");
  }
  return std::make_shared<LinearReward>(term.slope);
}

std::shared_ptr<const Reward> make_quadratic_reward(const RewardTerm& term) {
  if (term.center.empty()) {
    fail(ErrorKind::kConfig, "reward quadratic: center is missing",
         "center = [0.5] or one number per entry");
  }
  return std::make_shared<QuadraticReward>(term.center, term.curvature);
}

}  // namespace tiltflow
