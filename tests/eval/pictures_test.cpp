// What pictures show: samples without the noise of their last step; and that numbers are of the
// samples with it.
#include <cmath>

#include "tests/support.h"
#include "tests/train/small_run.h"
#include "tiltflow/eval/generate.h"
#include "tiltflow/flow/gaussian_mixture.h"
#include "tiltflow/io/image.h"
#include "tiltflow/io/json_lines.h"
#include "tiltflow/io/npz.h"

namespace tiltflow {
namespace {

constexpr double kWidth =
    0.01;  // of the modes: a thousandth of a picture's range, so that all else is noise

// Pictures of 4 x 4 pixels in two narrow modes, at +pattern and -pattern.
class PictureField final : public VelocityField {
 public:
  explicit PictureField(const std::shared_ptr<const Path>& path) : field_(mixture(), path) {}
  static at::Tensor pattern() { return at::linspace(0.3, 0.6, 16, at::kDouble); }
  at::Tensor velocity(const at::Tensor& x, const at::Tensor& t, const Condition& c) const override {
    return field_.velocity(x.flatten(1), t, c).view_as(x);
  }
  Vjp vjp_of(const at::Tensor& x, const at::Tensor& t, const Condition& c,
             const Cotangent& cotangent) const override {
    return field_.vjp_of(x.flatten(1), t, c, cotangent);
  }

 private:
  static GaussianMixture mixture() {
    return isotropic_mixture(at::full({2}, 0.5, at::kDouble), at::stack({pattern(), -pattern()}),
                             kWidth);
  }
  MixtureField field_;
};

// Root mean square distance to the nearer mode, per pixel: the width of the modes plus whatever
// noise is left.
double distance_to_modes(const at::Tensor& states) {
  const at::Tensor x = states.flatten(1).to(at::kDouble);
  const at::Tensor mode = PictureField::pattern() * x.sum(1, true).sign();
  return (x - mode).square().mean().sqrt().item<double>();
}

SamplerConfig sampler_named(const std::string& name, std::int64_t steps = 12) {
  SamplerConfig config;
  config.name = name;
  config.steps = steps;
  return config;
}

Draws draw_pictures(const SamplerConfig& sampler, const std::string& path_name, bool prediction) {
  const std::shared_ptr<const Path> path = make_path(path_name);
  DrawOptions options;
  options.n = 24;
  options.chunk = 10;
  options.keep_prediction = prediction;
  return draw(PictureField(path), sampler, *path, {1, 4, 4}, RandomStreams(5), no_labels(),
              options);
}

}  // namespace

TEST(eval_pictures, PredictionHasNoResidualNoise) {
  for (const char* path : {"linear", "gvp", "vp"}) {
    for (const char* name : {"auto", "euler", "exponential", "ancestral", "half-noise"}) {
      const SamplerConfig sampler = sampler_named(name);
      ASSERT_TRUE(leaves_noise(sampler, *make_path(path))) << name;
      const Draws draws = draw_pictures(sampler, path, true);
      EXPECT_LT(distance_to_modes(draws.prediction), 2 * kWidth) << path << " " << name;
      EXPECT_GT(distance_to_modes(draws.x), 3 * kWidth)
          << path << " " << name << ": showing the samples would be seen";
      EXPECT_TRUE(at::equal(draws.x, draw_pictures(sampler, path, false).x))
          << "statistics are of the same samples";
    }
  }
}

// The mean m_{K-1} is not enough: the memoryless step flips the noise of the state before it.
TEST(eval_pictures, TheMeanOfTheLastStepWouldStillBeSpeckled) {
  const std::shared_ptr<const Path> path = make_path("linear");
  const PictureField field(path);
  const TransitionTable table = table_of(sampler_named("exponential"), *path);
  const at::Tensor x_0 = prior_sample(RandomStreams(5), 0, 0, 24, {1, 4, 4});
  const Trajectory t = rollout(field, table, x_0, {}, keyed_noise(RandomStreams(5), 0, 0, x_0));
  const Transition& last = table.steps.back();
  EXPECT_GT(distance_to_modes(t.before_last * last.p + t.last_velocity * last.c), 4 * kWidth);
}

TEST(eval_pictures, SdeWithoutALastStepIsCleanedAndOthersShowTheirSamples) {
  SamplerConfig sde = sampler_named("sde-euler");
  sde.sde.last_step = "none";
  const Draws noisy = draw_pictures(sde, "linear", true);
  EXPECT_GT(distance_to_modes(noisy.x), 3 * kWidth);
  EXPECT_LT(distance_to_modes(noisy.prediction), 2 * kWidth);
  EXPECT_TRUE(at::equal(noisy.x, draw_pictures(sde, "linear", false).x));
  sde.sde.last_step = "tweedie";
  for (const SamplerConfig& clean : {sde, sampler_named("ode-heun"), sampler_named("ddim")}) {
    EXPECT_FALSE(leaves_noise(clean, *make_path("linear"))) << clean.name;
    const Draws draws = draw_pictures(clean, "linear", true);
    EXPECT_TRUE(at::equal(draws.prediction, draws.x)) << clean.name;
  }
}

// `sample` writes the law into its archives and the prediction into its pictures.
TEST(eval_pictures, GeneratedFilesHoldTheLawAndPicturesThePrediction) {
  const test::TempDir dir;
  const std::shared_ptr<const Path> path = make_path("linear");
  const PictureField field(path);
  const SamplerConfig sampler = sampler_named("exponential");
  const Draws draws = draw_pictures(sampler, "linear", true);
  GenerateOptions options;
  options.n = 24;
  options.part = 10;
  options.grid = 16;
  const auto decode = [](const at::Tensor& x) { return (x + 1) / 2; };
  for (const char* pack : {"safetensors", "npz"}) {
    options.out = dir / pack;
    options.pack = pack;
    EXPECT_TRUE(
        generate(field, sampler, *path, {1, 4, 4}, RandomStreams(5), no_labels(), decode, options)
            .complete);
  }
  const ParameterSet archive = read_safetensors(dir / "safetensors/samples.safetensors").tensors;
  EXPECT_LT((archive.at("samples") - draws.x).abs().max().item<double>(), 1e-5);
  const at::Tensor bytes = read_npz(dir / "npz/samples.npz").at("arr_0");
  const at::Tensor law = decode(draws.x).clamp(0, 1).mul(255).round().permute({0, 2, 3, 1});
  EXPECT_LE((bytes.to(at::kFloat) - law).abs().max().item<double>(), 1);
  const at::Tensor seen = decode(draws.prediction).clamp(0, 1);
  const at::Tensor file = read_image(dir / "safetensors/000007.png");
  EXPECT_LT((file[0] - seen[7][0]).abs().max().item<double>(), 1.01 / 255);
  const at::Tensor grid = read_image(dir / "npz/grid.png");
  EXPECT_LT(
      (grid - image_grid(seen.narrow(0, 0, 16), 8).expand_as(grid)).abs().max().item<double>(),
      1.01 / 255);
}

// The pictures of a run show predictions, its logged rewards are of the samples.
TEST(eval_pictures, RunsShowPredictionsAndLogSamples) {
  const test::TempDir dir;
  FinetuneConfig config = test::small_run(dir);
  config.train.steps = 1;
  const FinetuneSetup setup = set_up(config);
  tiltflow::Run run(dir / "run", "x", false);
  finetune(setup, run);
  DrawOptions options;
  options.n = config.evaluation.samples;
  options.step = RunKey::kEvaluation;
  options.keep_prediction = true;
  const Draws draws =
      draw(*setup.flow.model, config.sampler, *setup.flow.path, setup.flow.model->sample_shape(),
           setup.streams, setup.labels_at(options.step), options);
  const auto shown = [&](const at::Tensor& states) {
    return enlarge(image_grid(setup.reward->decode(states).clamp(0, 1), 8), 2);
  };
  const at::Tensor file = read_image(run.samples() / "samples-step-000000.png");
  EXPECT_LT((file - shown(draws.prediction).expand_as(file)).abs().max().item<double>(),
            1.01 / 255);
  EXPECT_GT((file - shown(draws.x).expand_as(file)).abs().max().item<double>(), 0.1)
      << "the samples themselves look otherwise";
  for (const auto& line : read_json_lines(dir / "run/metrics.jsonl")) {
    if (!line.contains("eval_reward") || line["step"] != 0) continue;
    EXPECT_NEAR(number_from_json(line["eval_reward"]),
                setup.reward->score(draws.x, draws.labels).mean().item<double>(), 1e-5);
  }
}

}  // namespace tiltflow
