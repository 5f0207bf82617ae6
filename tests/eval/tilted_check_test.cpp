#include <cmath>

#include "tests/support.h"
#include "tiltflow/eval/tilted_check.h"
#include "tiltflow/flow/path.h"
#include "tiltflow/flow/time_grid.h"
#include "tiltflow/reward/reward.h"
#include "tiltflow/verify/problems.h"

namespace tiltflow {
namespace {

// The exact field of N(mean_c, deviation^2 I) for every label c, on the linear path.
class LabelledGaussians final : public VelocityField {
 public:
  LabelledGaussians(at::Tensor means, double deviation)
      : means_(std::move(means)), variance_(deviation * deviation) {}
  at::Tensor velocity(const at::Tensor& x, const at::Tensor& t,
                      const Condition& condition) const override {
    const at::Tensor mean = means_.index_select(0, condition.labels);  // [N, d]
    const at::Tensor time = t.unsqueeze(1);
    const at::Tensor rest = 1 - time;
    const at::Tensor slope =
        (time * variance_ - rest) / (time.square() * variance_ + rest.square());
    return mean + slope * (x - time * mean);
  }

 private:
  at::Tensor means_;  // [labels, d]
  double variance_;
};

}  // namespace

// The check passes for the exact tilted field and fails for the base and for a field that is tilted
// too much.
TEST(eval_tilted_check, TellsTheTiltedLawFromOthers) {
  const ExactProblem p = near_modes();
  const ExactProblem twice = make_problem("", p.base->mixture(), linear_form(p.form.linear * 2));
  TiltedCheckOptions options;
  options.base_samples = 3000;
  options.tuned_samples = 2000;
  SamplerConfig sde, ode;
  sde.steps = 60;
  ode.name = "ode-heun";
  ode.steps = 30;
  options.samplers = {sde, ode};
  const auto run = [&](const GaussianMixture& law) {
    const MixtureField field(law, p.path);
    return check_tilted_law(*p.base, field, *p.path, *p.reward, {1}, RandomStreams(5), no_labels(),
                            options);
  };
  const TiltedCheck good = run(p.target.law);
  EXPECT_TRUE(good.passed) << table_text(good);
  EXPECT_NEAR(good.samplers[0].shift_reached.value, 1, 3 * good.samplers[0].shift_reached.se);
  EXPECT_LT(good.samplers[0].shift_reached.se, 0.15);
  EXPECT_NEAR(good.samplers[0].gap.value, 0, 0.1);
  EXPECT_NEAR(good.samplers[0].path_gap.value, 0, 0.02) << "discretisation at K = 60 only";
  EXPECT_LT(good.samplers[0].path_gap.se, 0.3 * good.samplers[0].gap.se);
  EXPECT_GT(good.samplers[0].path_ess, 0.95);
  // Noise in common: the difference has a smaller error than its two sides have together.
  const ComparedStatistic& mean = good.samplers[1].statistics.front();
  EXPECT_LT(mean.difference.se, 0.8 * std::hypot(mean.predicted.se, mean.tuned.se));
  EXPECT_DOUBLE_EQ(mean.difference.value, mean.tuned.value - mean.predicted.value);
  const TiltedCheck none = run(p.base->mixture());
  const TiltedCheck over = run(twice.target.law);
  EXPECT_FALSE(none.passed);
  EXPECT_NEAR(none.samplers[0].shift_reached.value, 0, 0.1);
  EXPECT_FALSE(over.passed);
  EXPECT_NEAR(none.samplers[0].path_gap.value, p.target.log_z,
              5 * none.samplers[0].path_gap.se + 0.01)
      << "uncontrolled: log Z - E r, and E r = 0 here";
  EXPECT_GT(over.samplers[0].path_gap.value, 10 * over.samplers[0].path_gap.se);
  EXPECT_EQ(to_json(good)["samplers"].size(), 2u);
  EXPECT_EQ(good.law, "p*(x), without a condition");
}

// Fifty conditions whose rewards lie far apart. Weights of single samples would predict the base
// itself: an untuned model would pass, and the exact one fail.
TEST(eval_tilted_check, ManyConditionsAreCheckedOnAFew) {
  constexpr double kDeviation = 0.5;
  const at::Tensor means = 3 * RandomStreams(7).normal(Purpose::kProbe, 0, 0, 0, 50, {2});
  RewardTerm term;
  term.name = "linear";
  term.slope = {1.8, -0.6};
  const StateReward reward(make_reward(term), identity_decoder());
  const at::Tensor slope = at::tensor(term.slope).to(at::kFloat);
  const LabelledGaussians base(means, kDeviation);
  const LabelledGaussians exact(means + kDeviation * kDeviation * slope, kDeviation);
  TiltedCheckOptions options;
  options.base_samples = 1000;
  options.tuned_samples = 520;
  SamplerConfig sde;
  sde.steps = 50;
  options.samplers = {sde};
  const auto path = make_path("linear");
  const LabelSource labels = uniform_labels(RandomStreams(8), 0, 50);
  const auto run = [&](const VelocityField& tuned) {
    return check_tilted_law(base, tuned, *path, reward, {2}, RandomStreams(9), labels, options);
  };
  const TiltedCheck good = run(exact);
  EXPECT_TRUE(good.passed) << table_text(good);
  EXPECT_EQ(good.samplers[0].tuned_samples, 504) << "21 conditions, 24 samples of each";
  EXPECT_EQ(good.samplers[0].base_samples, 504) << "equal shares of all conditions";
  EXPECT_NE(good.law.find("conditions of more"), std::string::npos) << good.law;
  const double gain = kDeviation * kDeviation * slope.square().sum().item<double>();
  const ComparedStatistic& mean = good.samplers[0].statistics.front();
  EXPECT_NEAR(mean.predicted.value - mean.base.value, gain, 0.15 * gain);
  EXPECT_NEAR(good.samplers[0].path_gap.value, 0, 0.03);
  const TiltedCheck none = run(base);
  EXPECT_FALSE(none.passed) << table_text(none);
  EXPECT_NEAR(none.samplers[0].shift_reached.value, 0, 0.1);
  options.base_samples = 20;
  test::expect_error(ErrorKind::kConfig, "check.base_samples = 20", [&] { run(exact); });
}

// A tuned model that is still the base misses the whole shift: six tenths of it are no allowance
// for that.
TEST(eval_tilted_check, NothingBeyondTheToleranceAgrees) {
  const ExactProblem p = near_modes();
  TiltedCheckOptions options;
  options.base_samples = options.tuned_samples = 500;
  options.standard_errors = 0;
  options.allowance = 0.6;
  SamplerConfig sampler;
  sampler.steps = 5;
  options.samplers = {sampler};
  const TiltedCheck check = check_tilted_law(*p.base, *p.base, *p.path, *p.reward, {1},
                                             RandomStreams(5), no_labels(), options);
  for (const ComparedStatistic& s : check.samplers[0].statistics) {
    EXPECT_NEAR(s.tolerance, 0.6 * std::abs(s.difference.value), 1e-9) << s.name;
    EXPECT_FALSE(s.agrees) << s.name;
  }
}

}  // namespace tiltflow
