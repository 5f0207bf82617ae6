#include <algorithm>
#include <numeric>

#include "tests/same_bytes.h"
#include "tests/support.h"
#include "tiltflow/base/file.h"
#include "tiltflow/io/json_lines.h"
#include "tiltflow/noise/assign_run.h"
#include "tiltflow/noise/flow_generator.h"
#include "tiltflow/noise/transport.h"
#include "tiltflow/tensor/parallel.h"

namespace tiltflow {
namespace {

const RandomStreams kAssignStreams(31);
const bool kPolicy =
    (set_thread_policy({2, 1}), true);  // one libtorch thread a tile, as the program runs

// G(z) = tanh(A z): an invertible toy whose optimum is known.
std::unique_ptr<Generator> toy(std::int64_t d = 9, double gain = 0.3) {
  ParameterSet p;
  p.add("0.weight", kAssignStreams.normal(Purpose::kInit, 0, 0, 0, 16, {d}) * gain);
  p.add("0.bias", at::zeros({16}));
  return make_mlp_generator(p, {});
}

AssignTargets targets_of(const Generator& g, const at::Tensor& z) {
  return {g.generate(z, {}), {}, at::arange(z.size(0), at::kLong)};
}

TEST(noise_transport, EqualsBruteForceAndIsAPermutation) {
  for (std::uint32_t key = 0; key < 20; ++key) {
    const std::int64_t n = 1 + key % 7;
    const std::int64_t m = n + key % 3;
    const at::Tensor cost =
        kAssignStreams.uniform(Purpose::kProbe, key, 0, n, {m}, at::kDouble)
            .mul(key % 2 ? 1 : 4)
            .floor()
            .add(key % 2 ? kAssignStreams.uniform(Purpose::kProbe, key + 99, 0, n, {m}, at::kDouble)
                         : at::zeros({n, m}, at::kDouble));  // with and without ties
    std::vector<std::int64_t> columns(static_cast<std::size_t>(m));
    std::iota(columns.begin(), columns.end(), 0);
    double best = 1e300;
    do best = std::min(best, assignment_cost(cost, {columns.begin(), columns.begin() + n}));
    while (std::next_permutation(columns.begin(), columns.end()));
    const std::vector<std::int64_t> found = linear_assignment(cost);
    std::vector<std::int64_t> sorted = found;
    std::sort(sorted.begin(), sorted.end());
    EXPECT_EQ(std::unique(sorted.begin(), sorted.end()), sorted.end());
    EXPECT_NEAR(assignment_cost(cost, found), best, 1e-12) << n << " x " << m;
  }
}

TEST(noise_transport, LargeProblemsAndSinkhorn) {
  const at::Tensor a = kAssignStreams.normal(Purpose::kProbe, 1, 0, 0, 300, {5}, at::kDouble);
  const at::Tensor order =
      at::tensor(kAssignStreams.permutation(Purpose::kProbe, 2, 300), at::kLong);
  const at::Tensor cost =
      at::cdist(a, a.index_select(0, order) + 1e-4);  // the optimum undoes the shuffle
  const std::vector<std::int64_t> found = linear_assignment(cost);
  for (std::int64_t i = 0; i < 300; ++i) {
    EXPECT_EQ(order[found[static_cast<std::size_t>(i)]].item<std::int64_t>(), i);
  }
  const at::Tensor random = kAssignStreams.uniform(Purpose::kProbe, 3, 0, 64, {64}, at::kDouble);
  const double exact = assignment_cost(random, linear_assignment(random));
  const double approximate = assignment_cost(random, sinkhorn_assignment(random));
  const double identity = random.trace().item<double>();
  EXPECT_LE(exact, approximate);
  EXPECT_LT(approximate, exact + 0.3 * (identity - exact));
  test::expect_error(ErrorKind::kNonFinite, "not finite",
                     [] { linear_assignment(at::full({2, 2}, NAN)); });
}

TEST(noise_assign, FindsTheNoiseThatMadeThePicture) {
  const auto g = toy();
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
  const auto g = toy(8);
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
  const auto g = toy(64);
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
  const auto g = toy(9, 1.5);  // saturated: many local optima
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
  const auto g = toy();
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
  const auto g = toy(9, 1.0);
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
  const auto g = toy(9, 1.0);
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

// ---- runs in folders

struct Scene {
  test::TempDir dir;
  std::unique_ptr<Generator> generator = toy(64);
  AssignConfig config;
  std::vector<Target> targets;
  Scene() {
    config.steps = 15;
    config.screen = 3;
    config.restarts = 2;
    config.chunk = 4;
    config.tile = 4;
    const at::Tensor images =
        generator->generate(kAssignStreams.normal(Purpose::kExact, 0, 0, 0, 13, {64}), {});
    for (std::int64_t i = 0; i < 13; ++i) {
      targets.push_back(
          {i, "t", [images, i] { return images[i]; }, [] { return std::int64_t{0}; }});
    }
  }
  AssignSummary run(const std::string& name, std::int64_t shard = 0, std::int64_t shards = 1,
                    bool retry = false) {
    const Assigner assigner(*generator, config, kAssignStreams);
    AssignRunOptions o;
    o.out = dir / name;
    o.start.config = "a = 1\n";
    o.shard = shard;
    o.shards = shards;
    o.retry_failed = retry;
    return run_assignment(*generator, assigner, config, targets, kAssignStreams, o);
  }
  std::string text(const std::string& file) const { return read_file(dir / file); }
};

TEST(noise_assign_run, InterruptionsAndShardsLeaveNoTrace) {
  Scene s;
  EXPECT_EQ(s.run("whole").assigned, 13);
  // Killed after the second chunk, with a log line cut off and a row half written.
  std::filesystem::create_directories(s.dir / "cut/store");
  for (const char* file : {"request.toml", "rows.bin"}) {
    std::filesystem::copy_file(s.dir / "whole/store" / file, s.dir / "cut/store" / file);
  }
  const std::string log = s.text("whole/store/log.jsonl");
  std::size_t end = 0;
  for (int i = 0; i < 6; ++i) end = log.find('\n', end) + 1;
  write_file_atomic(s.dir / "cut/store/log.jsonl", log.substr(0, end + 20));
  std::filesystem::resize_file(s.dir / "cut/store/rows.bin", 6 * 2 * 64 * 4 + 10);
  EXPECT_TRUE(s.run("cut").complete);
  EXPECT_FALSE(s.run("shards", 1, 2).complete);
  EXPECT_TRUE(s.run("shards", 0, 2).complete);
  for (const char* file :
       {"assigned.safetensors", "manifest.jsonl", "failures.jsonl", "summary.json", "noise.json"}) {
    EXPECT_TRUE(
        test::same_bytes(s.text(std::string("cut/") + file), s.text(std::string("whole/") + file)))
        << file;
    EXPECT_TRUE(test::same_bytes(s.text(std::string("shards/") + file),
                                 s.text(std::string("whole/") + file)))
        << file;
  }
  EXPECT_TRUE(test::same_bytes(s.text("cut/store/rows.bin"), s.text("whole/store/rows.bin")));
  EXPECT_TRUE(test::same_bytes(s.text("cut/store/log.jsonl"), s.text("whole/store/log.jsonl")));
  // A row that was damaged on disk is found by its checksum and made again.
  std::string rows = s.text("cut/store/rows.bin");
  rows[100] ^= 1;
  write_file_atomic(s.dir / "cut/store/rows.bin", rows);
  EXPECT_EQ(s.run("cut").assigned, 13);
  EXPECT_TRUE(
      test::same_bytes(s.text("cut/assigned.safetensors"), s.text("whole/assigned.safetensors")));
  const Assigner assigner(*s.generator, s.config, kAssignStreams);
  AssignRunOptions other;
  other.out = s.dir / "cut";
  other.start.config = "a = 2\n";
  test::expect_error(ErrorKind::kConfig, "another configuration", [&] {
    run_assignment(*s.generator, assigner, s.config, s.targets, kAssignStreams, other);
  });
}

TEST(noise_assign_run, BadTargetsBecomeFailuresAndCanBeTriedAgain) {
  Scene s;
  s.run("good");
  const std::vector<Target> good = s.targets;
  s.targets[3].image = []() -> at::Tensor {
    fail(ErrorKind::kBadFile, "the picture is truncated");
  };
  s.targets[5].image = [] { return at::zeros({1, 3, 3}); };
  s.targets[6].image = [] { return at::full({1, 4, 4}, NAN); };
  AssignSummary summary = s.run("bad");
  EXPECT_TRUE(summary.complete);
  EXPECT_EQ(summary.assigned, 10);
  EXPECT_EQ(summary.failed, 3);
  const auto failures = read_json_lines(s.dir / "bad/failures.jsonl");
  ASSERT_EQ(failures.size(), 3U);
  EXPECT_EQ(failures[0]["kind"], "bad-file");
  EXPECT_NE(failures[1]["message"].get<std::string>().find("the generator makes [1, 4, 4]"),
            std::string::npos);
  s.targets = good;
  EXPECT_EQ(s.run("bad").failed, 3);  // failures stay until they are asked for
  summary = s.run("bad", 0, 1, true);
  EXPECT_EQ(summary.failed, 0);
  EXPECT_EQ(s.text("bad/assigned.safetensors"), s.text("good/assigned.safetensors"));
}

TEST(noise_assign_run, PairsAndFoldersAreListsOfSingleTargets) {
  const test::TempDir dir;
  write_file_atomic(dir / "pairs.jsonl",
                    "{\"image\": \"a.png\", \"label\": 3}\n{\"image\": \"gone.png\", \"label\": "
                    "1}\nnonsense\n{\"image\": \"a.png\"}\n");
  const auto generator = load_generator(test::golden_onestep("cifar_generator.safetensors"));
  write_file_atomic(dir / "a.png", "no picture");
  TargetsConfig c;
  c.format = "pairs";
  c.path = dir.path().string();
  const std::vector<Target> list = list_targets(c);
  ASSERT_EQ(list.size(), 4U);
  for (const Target& t : list) {
    test::expect_error(ErrorKind::kBadFile, "", [&] { read_target(t, *generator); });
  }
  c.first = 9;
  test::expect_error(ErrorKind::kConfig, "there are 4 targets", [&] { list_targets(c); });
}

TEST(noise_generators, OneStepOfDiscreteSchedules) {
  const DiscreteSchedule sd("scaled-linear");
  EXPECT_NEAR(sd.sigma(999), 14.6146412, 1e-6);
  EXPECT_NEAR(sd.alpha_bar(999), 0.0046600985, 1e-9);
  EXPECT_NEAR(std::sqrt(sd.alpha_bar(999)), 0.0682649, 1e-7);
  EXPECT_NEAR(std::sqrt(1 - sd.alpha_bar(999)), 0.9976672, 1e-7);
  EXPECT_NEAR(sd.alpha_bar(0), 0.99915, 1e-6);
  EXPECT_NEAR(one_step(sd, "euler").input, 0.99767, 1e-5);
  test::expect_error(ErrorKind::kConfig, "unknown", [] { DiscreteSchedule("cosine"); });
  GeneratorConfig c;
  c.file = (test::source_dir() / "assets/mnist-sit.safetensors").string();
  c.schedule = "scaled-linear";
  const at::Tensor eps = kAssignStreams.normal(Purpose::kPrior, 0, 0, 0, 3, {1, 28, 28});
  const at::Tensor y = at::tensor({1, 2, 3}, at::kLong);
  const at::Tensor t = at::full({3}, 999.0);
  FlowModelConfig f;
  f.file = c.file;
  const auto network = load_flow_model(f).model;
  const auto sample = [&](const std::string& kind) {
    c.one_step = kind;
    return open_generator(c)->generate(eps, y);
  };
  const double sigma = sd.sigma(999);
  const double a = sd.alpha_bar(999);
  const double first = sd.alpha_bar(0);
  const at::Tensor seen =
      network->velocity(sigma * eps / std::sqrt(sigma * sigma + 1), t, Condition{y});
  const at::Tensor plain = network->velocity(eps, t, Condition{y});
  const at::Tensor x0 = (eps - std::sqrt(1 - a) * plain) / std::sqrt(a);
  EXPECT_LT(test::relative_error(sample("euler"), sigma * (eps - seen)), 1e-5);
  EXPECT_LT(test::relative_error(sample("ddpm"), x0), 1e-5);
  EXPECT_LT(
      test::relative_error(sample("tcd"), std::sqrt(first) * x0 + std::sqrt(1 - first) * plain),
      1e-5);
}

TEST(noise_assign, TheClosedFormRotationReproducesAFullOne) {
  const auto g = toy(8);
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

TEST(noise_generators, AFlowModelIsAOneStepGenerator) {
  GeneratorConfig c;
  c.file = (test::source_dir() / "assets/mnist-sit.safetensors").string();
  c.steps = 2;
  const auto g = open_generator(c);
  EXPECT_EQ(g->noise_shape(), (std::vector<std::int64_t>{1, 28, 28}));
  const at::Tensor z =
      kAssignStreams.normal(Purpose::kPrior, 0, 0, 0, 2, {1, 28, 28}).set_requires_grad(true);
  const at::Tensor y = at::tensor({3, 4}, at::kLong);
  const at::Tensor x = g->generate(z, y);
  EXPECT_EQ(x.sizes(), z.sizes());
  EXPECT_GT(torch::autograd::grad({x.sum()}, {z})[0].abs().max().item<double>(), 0);
  const test::TempDir dir;
  save_any_generator(dir / "g.safetensors", *g, g->parameters());
  c.file = (dir / "g.safetensors").string();
  EXPECT_TRUE(at::equal(open_generator(c)->generate(z.detach(), y), x.detach()));
  c.solver = "ode-dopri5";
  test::expect_error(ErrorKind::kConfig, "no one-step generator", [&] { open_generator(c); });
}

}  // namespace
}  // namespace tiltflow
