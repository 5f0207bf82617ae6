#include "tiltflow/noise/align.h"

#include <csignal>

#include "tests/support.h"
#include "tiltflow/base/signals.h"
#include "tiltflow/noise/flow_generator.h"

namespace tiltflow {
namespace {

const RandomStreams kStreams(17);

// Nearly linear: image = W z / 100 for 16 pixels, so that optima are known.
struct Linear16 {
  at::Tensor w = kStreams.normal(Purpose::kInit, 0, 0, 0, 16, {8});
  std::unique_ptr<Generator> generator;
  std::shared_ptr<const Reward> reward;
  at::Tensor direction;  // d reward / dz
  Linear16() {
    ParameterSet p;
    p.add("0.weight", w / 100);
    p.add("0.bias", at::zeros({16}));
    generator = make_mlp_generator(p, {});
    RewardTerm term;
    term.name = "linear";
    at::Tensor slope = at::zeros({16});
    for (std::int64_t i = 0; i < 16; ++i) {
      term.slope.push_back(static_cast<double>(i % 5) - 2);
      slope[i] = static_cast<double>(i % 5) - 2;
    }
    reward = make_weighted_sum({term});
    direction = at::mv(w.t(), slope) / 200;  // pictures are shown in [0, 1]
  }
};

TEST(noise_align, ASharedRotationReachesTheKnownOptimum) {
  const Linear16 s;
  for (const char* optimizer : {"riemannian", "adamw"}) {
    AlignConfig c;
    c.optimizer = optimizer;
    c.batch = 8;
    c.l2 = 0;
    c.steps = 150;
    c.angle = 0.3;
    c.learning_rate = 0.02;
    c.fresh = 4000;
    const AlignResult r = align_noise(*s.generator, *s.reward, nullptr, c, -1, kStreams);
    // mean_b direction . Q eps_b <= |direction| |mean eps|
    const double offset = r.reward.front() - at::dot(s.direction, r.eps.mean(0)).item<double>();
    const double best =
        offset + s.direction.norm().item<double>() * r.eps.mean(0).norm().item<double>();
    EXPECT_GT(r.reward[static_cast<std::size_t>(r.best_step)],
              r.reward.front() + 0.97 * (best - r.reward.front()))
        << optimizer;
    EXPECT_LT(r.reward[static_cast<std::size_t>(r.best_step)],
              best + 1e-3 * std::abs(best - r.reward.front()))
        << optimizer;
    EXPECT_LT(orthogonality(r.maps[0]).error, 1e-5) << optimizer;
    EXPECT_LT(test::relative_error(r.noise.norm(2, {1}), r.eps.norm(2, {1})), 1e-5);
    // A fixed rotation leaves the law alone: on new noise it gains nothing for a linear reward,
    // whatever it gained on its own batch.
    ASSERT_TRUE(r.has_fresh);
    EXPECT_LT(std::abs(r.fresh_aligned - r.fresh_base),
              4 * std::hypot(r.fresh_base_se, r.fresh_aligned_se));
    EXPECT_EQ(noise_report(r.noise, kStreams).statistics.dim, 8);
  }
}

TEST(noise_align, OwnRotationsReachTheirsAndTheNoiseTellsIt) {
  const Linear16 s;
  AlignConfig c;
  c.patches.per_sample = true;
  c.batch = 64;
  c.l2 = 0;
  c.steps = 120;
  c.angle = 0.3;
  const AlignResult r = align_noise(*s.generator, *s.reward, nullptr, c, -1, kStreams);
  const double offset = r.reward.front() - at::mv(r.eps, s.direction).mean().item<double>();
  const double best =
      offset + s.direction.norm().item<double>() * r.eps.norm(2, {1}).mean().item<double>();
  EXPECT_GT(r.reward.back(), r.reward.front() + 0.97 * (best - r.reward.front()));
  EXPECT_FALSE(r.has_fresh);
  EXPECT_EQ(noise_report(r.noise, kStreams).verdict, "radially exact, angularly tilted");
  c.l2 = 1;
  EXPECT_LT(align_noise(*s.generator, *s.reward, nullptr, c, -1, kStreams).drift.back(),
            0.5 * r.drift.back());
}

TEST(noise_align, HistoryBestAndHeldOut) {
  const Linear16 s;
  AlignConfig c;
  c.steps = 12;
  const AlignResult r = align_noise(*s.generator, *s.reward, s.reward.get(), c, -1, kStreams);
  ASSERT_EQ(r.reward.size(), 13U);  // the last update is scored, too
  EXPECT_EQ(r.reward, r.held_out);
  EXPECT_EQ(r.reward[static_cast<std::size_t>(r.best_step)],
            *std::max_element(r.reward.begin(), r.reward.end()));
  EXPECT_EQ(align_noise(*s.generator, *s.reward, nullptr, c, -1, kStreams).reward, r.reward);
  const auto gan = load_generator(test::golden_onestep("mnist_generator.safetensors"));
  c.labels = {10};
  RewardTerm ink;
  test::expect_error(ErrorKind::kConfig, "class 10", [&] {
    align_noise(*gan, *make_weighted_sum({ink}), nullptr, c, 10, kStreams);
  });
  c.steps = 3;
  EXPECT_TRUE((align_noise(*gan, *make_weighted_sum({ink}), nullptr, c, 4, kStreams).labels == 4)
                  .all()
                  .item<bool>());
}

TEST(noise_align, AStopIsHeardBetweenSteps) {
  const Linear16 s;
  AlignConfig c;
  c.batch = 8;
  install_stop_handlers();
  ::raise(SIGUSR1);
  test::expect_error(ErrorKind::kStopped, "stopped by SIGUSR1",
                     [&] { align_noise(*s.generator, *s.reward, nullptr, c, -1, kStreams); });
  forget_stop();
}

TEST(noise_align, PatchesOfANoisePicture) {
  GeneratorConfig g;
  g.file = (test::source_dir() / "assets/mnist-sit.safetensors").string();
  const auto flow = open_generator(g);
  AlignConfig c;
  c.patches.patch = 7;
  c.patches.groups = 4;
  c.batch = 2;
  c.steps = 4;
  c.fresh = 2;
  c.angle = 0.3;
  RewardTerm ink;
  const AlignResult r = align_noise(*flow, *make_weighted_sum({ink}), nullptr, c, 3, kStreams);
  EXPECT_EQ(r.maps.sizes(), (at::IntArrayRef{4, 49, 49}));
  EXPECT_GT(r.reward.back(), r.reward.front());
  EXPECT_LT(test::relative_error(r.noise.flatten(1).norm(2, {1}), r.eps.flatten(1).norm(2, {1})),
            1e-5);
}

}  // namespace
}  // namespace tiltflow
