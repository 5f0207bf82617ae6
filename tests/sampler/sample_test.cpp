#include <cmath>

#include "tests/sampler/picture_field.h"
#include "tests/support.h"
#include "tests/train/small_run.h"
#include "tiltflow/eval/generate.h"
#include "tiltflow/flow/gaussian_mixture.h"
#include "tiltflow/reward/importance.h"
#include "tiltflow/sampler/sample.h"
#include "tiltflow/tensor/parallel.h"
#include "tiltflow/verify/problems.h"

namespace tiltflow {
namespace {

using test::draw_pictures;
using test::kPictureWidth;
using test::PictureField;
using test::sampler_named;

// Root mean square distance to the nearer mode, per pixel: the width of the modes plus whatever
// noise is left.
double distance_to_modes(const at::Tensor& states) {
  const at::Tensor x = states.flatten(1).to(at::kDouble);
  const at::Tensor mode = PictureField::pattern() * x.sum(1, true).sign();
  return (x - mode).square().mean().sqrt().item<double>();
}

}  // namespace

TEST(sampler_sample, PredictionHasNoResidualNoise) {
  for (const char* path : {"linear", "gvp", "vp"}) {
    for (const char* name : {"auto", "euler", "exponential", "ancestral", "half-noise"}) {
      const SamplerConfig sampler = sampler_named(name);
      ASSERT_TRUE(leaves_noise(sampler, *make_path(path))) << name;
      const Draws draws = draw_pictures(sampler, path, true);
      EXPECT_LT(distance_to_modes(draws.prediction), 2 * kPictureWidth) << path << " " << name;
      EXPECT_GT(distance_to_modes(draws.x), 3 * kPictureWidth)
          << path << " " << name << ": showing the samples would be seen";
      EXPECT_TRUE(at::equal(draws.x, draw_pictures(sampler, path, false).x))
          << "statistics are of the same samples";
    }
  }
}

// The mean m_{K-1} is not enough: the memoryless step flips the noise of the state before it.
TEST(sampler_sample, TheMeanOfTheLastStepWouldStillBeSpeckled) {
  const std::shared_ptr<const Path> path = make_path("linear");
  const PictureField field(path);
  const TransitionTable table = table_of(sampler_named("exponential"), *path);
  const at::Tensor x_0 = prior_sample(RandomStreams(5), 0, 0, 24, {1, 4, 4});
  const Trajectory t = rollout(field, table, x_0, {}, keyed_noise(RandomStreams(5), 0, 0, x_0));
  const Transition& last = table.steps.back();
  EXPECT_GT(distance_to_modes(t.before_last * last.p + t.last_velocity * last.c),
            4 * kPictureWidth);
}

TEST(sampler_sample, SdeWithoutALastStepIsCleanedAndOthersShowTheirSamples) {
  SamplerConfig sde = sampler_named("sde-euler");
  sde.sde.last_step = "none";
  const Draws noisy = draw_pictures(sde, "linear", true);
  EXPECT_GT(distance_to_modes(noisy.x), 3 * kPictureWidth);
  EXPECT_LT(distance_to_modes(noisy.prediction), 2 * kPictureWidth);
  EXPECT_TRUE(at::equal(noisy.x, draw_pictures(sde, "linear", false).x));
  sde.sde.last_step = "tweedie";
  for (const SamplerConfig& clean : {sde, sampler_named("ode-heun"), sampler_named("ddim")}) {
    EXPECT_FALSE(leaves_noise(clean, *make_path("linear"))) << clean.name;
    const Draws draws = draw_pictures(clean, "linear", true);
    EXPECT_TRUE(at::equal(draws.prediction, draws.x)) << clean.name;
  }
}

TEST(sampler_sample, SamplesDoNotDependOnChunksOrWorkers) {
  const ExactProblem p = plane_modes(false);
  SamplerConfig config;
  config.steps = 8;
  const auto run = [&](std::int64_t n, std::int64_t chunk, int workers) {
    set_thread_policy({workers, 1});
    DrawOptions options;
    options.n = n;
    options.chunk = chunk;
    return draw(*p.base, config, *p.path, {2}, RandomStreams(4), no_labels(), options).x;
  };
  const at::Tensor one = run(20, 20, 1);
  EXPECT_LT((run(20, 3, 4) - one).abs().max().item<double>(), 1e-6);
  EXPECT_LT((run(7, 7, 1) - one.narrow(0, 0, 7)).abs().max().item<double>(), 1e-6);
  set_thread_policy({1, 1});
}

// Under the field's own law, E exp(log_ratio) = 1 and E log_ratio = -E cost.
TEST(sampler_sample, PathDensityRatioIsADensity) {
  const ExactProblem p = line_gaussian(false);
  const MixtureField tuned(p.target.law, p.path);
  SamplerConfig config;
  config.steps = 15;
  DrawOptions options;
  options.n = 20000;
  options.chunk = 1000;
  options.reference = p.base.get();
  const Draws d = draw(tuned, config, *p.path, {1}, RandomStreams(6), no_labels(), options);
  const at::Tensor ratio = d.log_ratio.to(at::kDouble).exp();
  const double se = ratio.std().item<double>() / std::sqrt(20000.0);
  EXPECT_NEAR(ratio.mean().item<double>(), 1, 4 * se);
  const at::Tensor sum = (d.log_ratio + d.cost).to(at::kDouble);
  EXPECT_NEAR(sum.mean().item<double>(), 0, 4 * sum.std().item<double>() / std::sqrt(20000.0));
  // near the optimum r + log_ratio is constant: log Z with hardly any error
  const PathGap gap = path_gap(p.reward->score(d.x, {}), d.log_ratio, {});
  EXPECT_NEAR(gap.gap, 0, 0.01);
  EXPECT_LT(gap.gap_se, 0.002);
}

}  // namespace tiltflow
