#include <cmath>

#include "tests/support.h"
#include "tiltflow/eval/tilted_check.h"
#include "tiltflow/flow/time_grid.h"
#include "tiltflow/verify/problems.h"

namespace tiltflow {

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
}

}  // namespace tiltflow
