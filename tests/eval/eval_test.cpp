#include <cmath>

#include "tests/support.h"
#include "tiltflow/eval/quality.h"
#include "tiltflow/eval/tilted_check.h"
#include "tiltflow/eval/verify/gaussian_chain.h"
#include "tiltflow/eval/verify/problems.h"
#include "tiltflow/eval/verify/suite.h"
#include "tiltflow/flow/time_grid.h"
#include "tiltflow/reward/importance.h"

namespace tiltflow {

TEST(eval_statistics, JackknifeOfAPlainMeanIsTheUsualStandardError) {
  const at::Tensor x = RandomStreams(1).normal(Purpose::kProbe, 0, 0, 0, 6400, {}, at::kDouble);
  const auto e = jackknife(6400, 0, [&](const at::Tensor& index, const at::Tensor&) {
    return std::vector<double>{x.index_select(0, index).mean().item<double>()};
  });
  EXPECT_NEAR(e[0].value, mean_estimate(x).value, 1e-12);
  EXPECT_NEAR(e[0].se / mean_estimate(x).se, 1, 0.4);  // 32 groups: 13 % per s.e., three of them
}

TEST(eval_statistics, ImportanceWeightsRecoverATilt) {
  const ExactProblem p = near_modes();
  const at::Tensor x = sample(p.base->mixture(), RandomStreams(2), 0, 20000);
  const at::Tensor r = evaluate(p.form, x);
  const ImportanceWeights weights = importance_weights(r, {});
  EXPECT_NEAR(weights.log_z, p.target.log_z, 4 * weights.log_z_se);
  EXPECT_LT(weights.log_z_se, 0.02);
  const auto e = jackknife(r.size(0), 0, [&](const at::Tensor& index, const at::Tensor&) {
    return std::vector<double>{at::dot(r.index_select(0, index).to(at::kDouble).softmax(0),
                                       x.index_select(0, index).flatten())
                                   .item<double>()};
  });
  EXPECT_NEAR(e[0].value, mean(p.target.law)[0].item<double>(), 4 * e[0].se);
  EXPECT_LT(weights.ess, 20000);
}

// Two labels whose rewards differ by a constant: the constant must not move mass between them.
TEST(eval_statistics, EveryLabelHasItsOwnNormaliser) {
  const at::Tensor labels = at::arange(1000).remainder(2);
  const at::Tensor r =
      RandomStreams(3).normal(Purpose::kProbe, 0, 0, 0, 1000, {}, at::kDouble) + labels * 7;
  const ImportanceWeights weights = importance_weights(r, labels);
  const at::Tensor w = weights.log_weights.softmax(0);
  EXPECT_NEAR((w * labels).sum().item<double>(), 0.5, 1e-9);
  EXPECT_NEAR(weights.log_z, 0.5 + 3.5, 0.2);
}

TEST(eval_statistics, FrechetDistanceOfGaussians) {
  const at::Tensor a = at::eye(3, at::kDouble);
  const at::Tensor b = at::eye(3, at::kDouble) * 4;
  EXPECT_NEAR(
      frechet_distance({at::zeros({3}, at::kDouble), a, 1}, {at::ones({3}, at::kDouble), b, 1}),
      3 + 3 * 1, 1e-9);  // |dm|^2 + sum (1-2)^2
}

// Two standard normals in d dimensions: mean distance 2 Gamma((d+1)/2) / Gamma(d/2); samples of one
// law have precision and recall near one, samples of half of it lose recall alone.
TEST(eval_quality, DiversityPrecisionRecallAndExtrapolation) {
  const RandomStreams streams(6);
  const at::Tensor x = streams.normal(Purpose::kProbe, 0, 0, 0, 800, {3}, at::kDouble);
  const at::Tensor y = streams.normal(Purpose::kProbe, 1, 0, 0, 800, {3}, at::kDouble);
  const Estimate spread = diversity(x);
  EXPECT_NEAR(spread.value, 2 * std::tgamma(2) / std::tgamma(1.5), 4 * spread.se);
  EXPECT_LT(spread.se, 0.06);
  const PrecisionRecall same = precision_recall(x, y);
  EXPECT_GT(same.precision.value, 0.85);
  EXPECT_GT(same.recall.value, 0.85);
  const at::Tensor half = x.index_select(0, (x.select(1, 0) > 0).nonzero().flatten());
  const PrecisionRecall fewer = precision_recall(half, y);
  EXPECT_GT(fewer.precision.value, 0.85);
  EXPECT_NEAR(fewer.recall.value, 0.5, 0.12);
  // The truth is zero; the plain distance is biased upwards, the extrapolated one is not.
  const FeatureMoments truth{at::zeros({3}, at::kDouble), at::eye(3, at::kDouble), 1e9};
  const at::Tensor few = streams.normal(Purpose::kProbe, 2, 0, 0, 400, {3}, at::kDouble);
  const Estimate extrapolated = frechet_extrapolated(few, truth, streams);
  EXPECT_LT(std::abs(extrapolated.value), frechet_distance(feature_moments(few), truth));
  EXPECT_THROW(frechet_extrapolated(few.narrow(0, 0, 50), truth, streams), Error);
}

// Samples of one number belong together: what both sets share cancels from the error of their
// difference, whatever their sizes.
TEST(eval_statistics, PairedJackknife) {
  const RandomStreams streams(3);
  const at::Tensor x = streams.normal(Purpose::kProbe, 0, 0, 0, 1600, {1}, at::kDouble).flatten();
  const at::Tensor y =
      x + 0.1 * streams.normal(Purpose::kProbe, 1, 0, 0, 1600, {1}, at::kDouble).flatten();
  const auto difference = [&](const at::Tensor& other, std::int64_t n) {
    return jackknife(1600, n, [&](const at::Tensor& i, const at::Tensor& j) {
      return std::vector<double>{x.index_select(0, i).mean().item<double>() -
                                 other.index_select(0, j).mean().item<double>()};
    })[0];
  };
  const at::Tensor apart =
      streams.normal(Purpose::kProbe, 2, 0, 0, 1600, {1}, at::kDouble).flatten();
  EXPECT_NEAR(difference(y, 1600).se, 0.1 / 40, 0.03 / 40);
  EXPECT_NEAR(difference(apart, 1600).se, std::sqrt(2.0) / 40, 0.4 / 40);
  EXPECT_NEAR(difference(y, 800).se, std::sqrt(1.0 / 1600 + 1.01 / 800 - 2.0 / 1600), 0.25 / 40)
      << "half of the pairs";
}

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

TEST(eval_verify, OptimumOfAGaussianChain) {
  const TransitionTable table = make_table("euler", *make_path("linear"), uniform_grid(40));
  const ChainOptimum linear = gaussian_chain_optimum(line_gaussian(false), table);
  const ChainOptimum quadratic = gaussian_chain_optimum(line_gaussian(true), table);
  EXPECT_NEAR(linear.mean.item<double>(), 1.249, 6e-4);
  EXPECT_NEAR(linear.covariance.item<double>(), 0.4905, 6e-5);
  EXPECT_NEAR(linear.cost, 0.552, 6e-4);
  EXPECT_NEAR(quadratic.mean.item<double>(), 1.143, 6e-4);
  EXPECT_NEAR(quadratic.covariance.item<double>(), 0.289, 6e-4);
  EXPECT_NEAR(quadratic.cost, 0.467, 6e-4);
  // In 16 dimensions the bias falls with the step.
  const ExactProblem wide = wide_gaussian(16, true);
  const auto gap = [&](int K) {
    return gaussian_chain_optimum(wide, make_table("euler", *wide.path, uniform_grid(K))).gap(wide);
  };
  EXPECT_GT(gap(40), 2 * gap(160));
  EXPECT_GT(gap(160), 0);
  EXPECT_THROW(gaussian_chain_optimum(near_modes(), table), Error);
  EXPECT_THROW(gaussian_chain_optimum(wide, make_table("ddim", *wide.path, uniform_grid(4), 0.0)),
               Error);
}

TEST(eval_verify, RowsJudgeThemselves) {
  VerifyRow row{"p", "q", 1, {1.05, 0}, 0.1, false, ""};
  EXPECT_TRUE(row.ok());
  row.negative_control = true;
  EXPECT_FALSE(row.ok());
  row.obtained.value = std::nan("");
  EXPECT_TRUE(row.ok());  // a control that blows up fails, as it must
  row.negative_control = false;
  EXPECT_FALSE(row.ok());
}

}  // namespace tiltflow
