#include "tiltflow/noise/assign.h"
#include "tests/noise/toy_generator.h"
#include "tests/same_bytes.h"
#include "tests/support.h"
#include "tiltflow/base/file.h"
#include "tiltflow/noise/assign_run.h"
#include "tiltflow/tensor/parallel.h"

namespace tiltflow {
namespace {

using test::kAssignStreams;
using test::toy_generator;

const bool kPolicy =
    (set_thread_policy({2, 1}), true);  // one libtorch thread a tile, as the program runs

AssignTargets targets_of(const Generator& g, const at::Tensor& z) {
  return {g.generate(z, {}), {}, at::arange(z.size(0), at::kLong)};
}

}  // namespace

TEST(noise_assign, FindsTheNoiseThatMadeThePicture) {
  const auto g = toy_generator();
  const at::Tensor z = kAssignStreams.normal(Purpose::kExact, 0, 0, 0, 12, {9});
  AssignConfig c;
  c.map = "free";
  c.steps = 600;
  c.learning_rate = 0.1;
  const AssignResult free = Assigner(*g, c, kAssignStreams).assign(targets_of(*g, z), 0);
  EXPECT_LT(free.loss.max().item<double>(), 1e-5);
  // On the sphere the target must have the length of the base noise: give the search such targets.
  c.map = "sphere";
  c.screen = 1;
  c.restarts = 1;
  const at::Tensor eps = kAssignStreams.normal(Purpose::kExact, 1, 0, 0, 12, {9});
  const AssignResult sphere =
      Assigner(*g, c, kAssignStreams).assign(targets_of(*g, on_sphere(z, eps)), 0, eps);
  EXPECT_LT(sphere.loss.median().item<double>(), 1e-6);
  EXPECT_LT(test::relative_error(sphere.noise.norm(2, {1}), eps.norm(2, {1})), 1e-6);
  EXPECT_LT(test::relative_error(
                at::matmul(rotation_between(eps, sphere.noise), eps.unsqueeze(2)).squeeze(2),
                sphere.noise),
            1e-5);
}

TEST(noise_assign, EveryMapImprovesAndKeepsLengths) {
  const auto g = toy_generator(8);
  const AssignTargets targets =
      targets_of(*g, kAssignStreams.normal(Purpose::kExact, 0, 0, 0, 6, {8}));
  for (const char* map :
       {"sphere", "expm", "cayley", "householder", "block", "givens", "butterfly"}) {
    AssignConfig c;
    for (const char* optimizer : {"lbfgs", "adam"}) {
      c.optimizer = optimizer;
      c.map = map;
      c.steps = 60;
      c.screen = 4;
      c.restarts = 2;
      c.learning_rate = 0.05;
      const AssignResult r = Assigner(*g, c, kAssignStreams).assign(targets, 0);
      EXPECT_LT(r.loss.mean().item<double>(), 0.8 * r.start_loss.mean().item<double>()) << map;
      EXPECT_LT(test::relative_error(r.noise.norm(2, {1}), r.base.norm(2, {1})), 1e-5) << map;
      EXPECT_LT((Assigner(*g, c, kAssignStreams).evaluate(r.noise, r.base, targets) - r.loss)
                    .abs()
                    .max()
                    .item<double>(),
                1e-6)
          << map << ": the loss reported is that of the noise kept";
    }
  }
}

TEST(noise_assign, ATargetDoesNotDependOnItsCompany) {
  const auto g = toy_generator(64);
  const AssignTargets all =
      targets_of(*g, kAssignStreams.normal(Purpose::kExact, 0, 0, 0, 11, {64}));
  AssignConfig c;
  c.steps = 25;
  c.screen = 6;
  c.restarts = 3;
  c.tile = 8;
  c.patience = 6;
  const AssignResult whole = Assigner(*g, c, kAssignStreams).assign(all, 3);
  const at::Tensor some = at::tensor({7, 2, 10}, at::kLong);
  const AssignTargets part{all.images.index_select(0, some), {}, all.ids.index_select(0, some)};
  const AssignResult alone = Assigner(*g, c, kAssignStreams).assign(part, 3);
  EXPECT_TRUE(at::equal(alone.noise, whole.noise.index_select(0, some)));
  EXPECT_TRUE(at::equal(alone.loss, whole.loss.index_select(0, some)));
}

TEST(noise_assign, RestartsScreeningPatienceAndBounds) {
  const auto g = toy_generator(9, 1.5);  // saturated: many local optima
  const AssignTargets targets =
      targets_of(*g, kAssignStreams.normal(Purpose::kExact, 0, 0, 0, 40, {9}));
  AssignConfig one;
  one.steps = 60;
  one.screen = 1;
  one.restarts = 1;
  AssignConfig many = one;
  many.screen = 16;
  many.restarts = 8;
  const AssignResult single = Assigner(*g, one, kAssignStreams).assign(targets, 0);
  const AssignResult best = Assigner(*g, many, kAssignStreams).assign(targets, 0);
  EXPECT_LT(best.loss.mean().item<double>(), 0.7 * single.loss.mean().item<double>());
  EXPECT_LE(single.backwards, 40 * 60);
  EXPECT_GT(single.backwards, 35 * 60);
  // Screening alone keeps the best of the starts, and of more starts a better one.
  AssignConfig chosen = one;
  chosen.steps = 0;
  chosen.screen = 16;
  const AssignResult screened = Assigner(*g, chosen, kAssignStreams).assign(targets, 0);
  at::Tensor least = at::full({40}, 1e9, at::kDouble);
  for (std::uint32_t s = 0; s < 16; ++s) {
    std::vector<at::Tensor> starts;
    for (std::int64_t i = 0; i < 40; ++i) {
      starts.push_back(kAssignStreams.normal(Purpose::kPrior, 0, s, i, 1, {9}));
    }
    const at::Tensor z = at::cat(starts);
    least = at::minimum(least, Assigner(*g, chosen, kAssignStreams).evaluate(z, z, targets));
  }
  EXPECT_LT((screened.loss - least).abs().max().item<double>(), 1e-6);
  AssignConfig hasty = one;
  hasty.patience = 3;
  EXPECT_LT(Assigner(*g, hasty, kAssignStreams).assign(targets, 0).backwards, single.backwards);
  AssignConfig bounded = one;
  bounded.max_angle = 20;
  const AssignResult near = Assigner(*g, bounded, kAssignStreams).assign(targets, 0);
  const at::Tensor cosine = (near.noise * near.base).sum(1) / near.base.square().sum(1);
  EXPECT_GT(cosine.min().item<double>(), std::cos(20.01 * M_PI / 180));
  EXPECT_LT(cosine.min().item<double>(), std::cos(15 * M_PI / 180));  // the bound is used
  EXPECT_LT(near.loss.mean().item<double>(), near.start_loss.mean().item<double>());
  // A warm start never gets worse, even with no step.
  AssignConfig none = one;
  none.steps = 0;
  const AssignResult again =
      Assigner(*g, none, kAssignStreams).assign(targets, 0, single.base, single.noise);
  EXPECT_LT((again.loss - single.loss).abs().max().item<double>(), 1e-7);
  const AssignResult better =
      Assigner(*g, one, kAssignStreams).assign(targets, 1, single.base, single.noise);
  EXPECT_LE((better.loss - single.loss).max().item<double>(), 1e-7);
}

TEST(noise_assign, NoiseTermsAct) {
  const auto g = toy_generator();
  const AssignTargets targets =
      targets_of(*g, kAssignStreams.normal(Purpose::kExact, 0, 0, 0, 20, {9}));
  const auto run = [&](auto change) {
    AssignConfig c;
    c.steps = 80;
    c.screen = 1;
    c.restarts = 1;
    change(c);
    return Assigner(*g, c, kAssignStreams).assign(targets, 0);
  };
  const auto drift = [](const AssignResult& r) {
    return (r.noise - r.base).square().mean().item<double>();
  };
  EXPECT_LT(drift(run([](AssignConfig& c) { c.loss.drift = 0.1; })),
            0.7 * drift(run([](AssignConfig&) {})));
  const auto mean = [](const AssignResult& r) {
    return r.noise.mean(1).square().mean().item<double>();
  };
  EXPECT_LT(mean(run([](AssignConfig& c) { c.loss.prior = 1; })),
            0.3 * mean(run([](AssignConfig&) {})));
  const auto length = [](const AssignResult& r) {
    return (r.noise.square().mean(1) - 1).square().mean().item<double>();
  };
  EXPECT_LT(length(run([](AssignConfig& c) {
              c.map = "free";
              c.loss.prior = 1;
            })),
            0.3 * length(run([](AssignConfig& c) { c.map = "free"; })));
}

TEST(noise_assign, TransportUsesExactlyThePool) {
  const auto g = toy_generator(9, 1.0);
  const AssignTargets targets =
      targets_of(*g, kAssignStreams.normal(Purpose::kExact, 0, 0, 0, 64, {9}));
  AssignConfig c;
  c.init = "transport";
  c.steps = 0;
  const Assigner assigner(*g, c, kAssignStreams);
  const at::Tensor base = assigner.transport(targets, 0);
  const at::Tensor pool = kAssignStreams.normal(Purpose::kPrior, 0, 1, 0, 64, {9});
  const auto sorted = [](const at::Tensor& x) { return std::get<0>(x.select(1, 0).sort()); };
  EXPECT_TRUE(at::equal(sorted(base), sorted(pool)));
  const double matched = assigner.evaluate(base, base, targets).mean().item<double>();
  const double random = assigner.evaluate(pool, pool, targets).mean().item<double>();
  EXPECT_LT(matched, 0.8 * random);
  EXPECT_EQ(noise_report(base, kAssignStreams).verdict, "consistent with N(0, I)");
}

TEST(noise_assign, TransportBlocksPoolsAndFeatures) {
  const auto g = toy_generator(9, 1.0);
  const AssignTargets targets =
      targets_of(*g, kAssignStreams.normal(Purpose::kExact, 0, 0, 0, 64, {9}));
  const auto run = [&](auto change, const FeatureFunction& features = {}) {
    AssignConfig c;
    c.init = "transport";
    c.steps = 0;
    change(c);
    const Assigner assigner(*g, c, kAssignStreams, features);
    const at::Tensor base = assigner.transport(targets, 0);
    return assigner.assign(targets, 0, base).loss.mean().item<double>();
  };
  const double whole = run([](AssignConfig&) {});
  EXPECT_GT(run([](AssignConfig& c) { c.block = 8; }), whole);  // smaller problems, less choice
  EXPECT_LT(run([](AssignConfig& c) { c.pool = 4; }), 0.8 * whole);  // more noises to choose from
  EXPECT_LT(run([](AssignConfig& c) { c.init = "sinkhorn"; }), 1.3 * whole);
  EXPECT_GT(run([](AssignConfig& c) { c.loss.l1 = 1; }), whole);
  // A feature that sees the first row of pixels only: its distance is what is minimised.
  const FeatureFunction row = [](const at::Tensor& x) { return x.select(2, 0).flatten(1); };
  AssignConfig c;
  c.loss.mse = 0;
  c.loss.feature = 1;
  c.steps = 80;
  const AssignResult r = Assigner(*g, c, kAssignStreams, row).assign(targets, 0);
  const at::Tensor off = ((g->generate(r.noise, {}) - targets.images) / 2).square();
  EXPECT_NEAR(off.select(2, 0).mean().item<double>(), r.loss.mean().item<double>(), 1e-5);
  EXPECT_LT(off.select(2, 0).mean().item<double>(), 0.1 * off.mean().item<double>());
}

TEST(noise_assign, TheReferenceCurveIsReproduced) {
  const auto meta =
      nlohmann::json::parse(read_file(test::golden_onestep("meta.json"))).at("inversion");
  for (const std::string name : {"mnist", "cifar"}) {
    const auto generator = load_generator(test::golden_onestep(name + "_generator.safetensors"));
    const ParameterSet t =
        read_safetensors(test::golden_onestep(name + "_inversion.safetensors")).tensors;
    const auto& m = meta.at(name);
    const auto map = make_orthogonal_map({"expm"}, noise_size(*generator));
    EXPECT_LT(
        test::relative_error(map->matrix(t.at("static.raw").unsqueeze(0))[0], t.at("static.Q")),
        1e-5);
    EXPECT_LT(test::relative_error(
                  map->apply(t.at("static.raw").unsqueeze(0), t.at("base_noise").unsqueeze(0))[0],
                  t.at("static.z")),
              1e-5);
    AssignConfig c;
    c.map = "expm";
    c.loss.l1 = m.at("l1").get<double>();
    c.loss.prior = m.at("prior").get<double>();
    const Assigner assigner(*generator, c, kAssignStreams);
    const AssignTargets target{t.at("target"), t.at("label"), at::zeros({1}, at::kLong)};
    // The reference's loop: Adam at a constant rate on the raw matrix; its orthogonality penalty is
    // rounding noise.
    at::Tensor raw = (t.at("raw_unit") * m.at("init_scale").get<double>()).unsqueeze(0);
    at::Tensor first = at::zeros_like(raw);
    at::Tensor second = at::zeros_like(raw);
    for (std::int64_t k = 0; k < 25; ++k) {
      const at::Tensor leaf = raw.detach().set_requires_grad(true);
      const at::Tensor z = map->apply(leaf, t.at("base_noise").unsqueeze(0)).squeeze(0);
      const at::Tensor loss = assigner.losses(z, t.at("base_noise"), target).sum();
      const at::Tensor g = torch::autograd::grad({loss}, {leaf})[0];
      EXPECT_NEAR(loss.item<double>() / t.at("curve")[k].item<double>(), 1, 1e-4)
          << name << " step " << k;
      first = 0.9 * first + 0.1 * g;
      second = 0.999 * second + 0.001 * g.square();
      raw = raw - m.at("lr").get<double>() * (first / (1 - std::pow(0.9, k + 1))) /
                      ((second / (1 - std::pow(0.999, k + 1))).sqrt() + 1e-8);
    }
  }
}

TEST(noise_assign, TheClosedFormRotationReproducesAFullOne) {
  const auto g = toy_generator(8);
  const AssignTargets targets =
      targets_of(*g, kAssignStreams.normal(Purpose::kExact, 0, 0, 0, 20, {8}));
  AssignConfig c;
  c.map = "expm";
  c.optimizer = "adam";
  c.learning_rate = 0.05;
  c.screen = 1;
  c.restarts = 1;
  c.steps = 100;
  const Assigner full(*g, c, kAssignStreams);
  const AssignResult r = full.assign(targets, 0);
  const at::Tensor again =
      at::matmul(rotation_between(r.base, r.noise), r.base.unsqueeze(2)).squeeze(2);
  EXPECT_LT((full.evaluate(again, r.base, targets) - r.loss).abs().max().item<double>(), 1e-5);
  AssignConfig sphere;
  sphere.screen = 8;
  sphere.restarts = 8;
  sphere.steps = 100;
  EXPECT_LT(Assigner(*g, sphere, kAssignStreams).assign(targets, 0).loss.mean().item<double>(),
            0.8 * r.loss.mean().item<double>());
}

}  // namespace tiltflow
