#include <cmath>

#include "tests/same_bytes.h"
#include "tests/support.h"
#include "tests/train/small_onestep.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/eval/generator_comparison.h"
#include "tiltflow/io/image.h"
#include "tiltflow/train/onestep.h"

namespace tiltflow {
namespace {

using test::kOneStepStreams;
using test::quick_onestep;
using test::small_generator;

at::Tensor bytes_of(const at::Tensor& images) {
  return ((images + 1) * 127.5).round().clamp(0, 255).to(at::kByte);
}

// Targets near, but not on, what the generator can make; noise that nearly makes them.
AssignedSet pairs_for(const Generator& g, std::int64_t n = 120) {
  const at::Tensor z = kOneStepStreams.normal(Purpose::kExact, 7, 0, 0, n, {8});
  const at::Tensor shift =
      kOneStepStreams.normal(Purpose::kExact, 8, 0, 0, 1, g.sample_shape()) * 0.2;
  return {z,
          z.clone(),
          bytes_of((g.generate(z, {}) + shift).clamp(-1, 1)),
          at::zeros({n}, at::kLong),
          at::arange(n, at::kLong),
          at::zeros({n}, at::kDouble)};
}

SftResult tune(const std::shared_ptr<const Generator>& g, const AssignedSet& pairs,
               const OneStepConfig& c, const std::filesystem::path& out) {
  Run run(out, "x = 1\n", false);
  return sft(g, nullptr, pairs, c, run);
}

double spread(const Generator& g) {
  return g.generate(kOneStepStreams.normal(Purpose::kExact, 1, 0, 0, 400, {8}), {})
      .flatten(1)
      .var(0)
      .mean()
      .item<double>();
}

// Pictures of the generator in two splits, and how noise is found for them.
OneStepConfig data_of(const Generator& g, const std::filesystem::path& folder) {
  OneStepConfig out;
  out.targets.format = "folder";
  out.targets.path = folder.string();
  for (const char* split : {"train", "test"}) {
    std::filesystem::create_directories(folder / split / "only");
    const at::Tensor pictures =
        (g.generate(kOneStepStreams.normal(Purpose::kExact, split[1], 0, 0, 40, {8}), {}) + 1) / 2;
    for (std::int64_t i = 0; i < 40; ++i) {
      write_png(folder / split / "only" / cat(i, ".png"), pictures[i]);
    }
  }
  out.assign.steps = 20;
  out.assign.screen = 4;
  out.assign.restarts = 1;
  return out;
}

}  // namespace

TEST(train_sft, MatchedLearnsAndDirectCollapses) {
  const test::TempDir dir;
  const auto g = small_generator();
  const AssignedSet pairs = pairs_for(*g);
  OneStepConfig c = quick_onestep();
  SftObjective before(g, g, pairs, c.sft, 0);
  const double start = before.validate(before.trainable());
  const SftResult matched = tune(g, pairs, c, dir / "matched");
  EXPECT_LT(matched.validation, 0.4 * start);
  EXPECT_GT(spread(*load_generator(matched.file)), 0.8 * spread(*g));
  c.sft.mode = "direct";
  c.sft.preserve = 0;
  c.train.steps = 200;
  c.train.optimizer.learning_rate = 3e-2;
  EXPECT_LT(spread(*load_generator(tune(g, pairs, c, dir / "direct").file)),
            0.2 * spread(*g));  // every noise has to make every target: their mean
  // The comparison names it.
  save_generator(dir / "base.safetensors", *g, g->parameters());
  GeneratorComparisonOptions o;
  o.n = 400;
  o.held_out = 16;
  write_assigned(dir / "assigned.safetensors", pairs);
  o.pairs = dir / "assigned.safetensors";
  o.entries = {{"base", dir / "base.safetensors", {}},
               {"matched", matched.file, {}},
               {"direct", dir / "direct/model.safetensors", {}},
               {"direct", dir / "direct/model.safetensors", {}}};
  const GeneratorComparison table = compare_generators(data_of(*g, dir / "data"), o);
  EXPECT_EQ(table.collapsed, std::vector<std::string>{"direct"});
  ASSERT_EQ(table.rows.size(), 4U);
  EXPECT_EQ(table.rows[3].repetitions, 2);
  const auto figure = [&](std::size_t row, const std::string& name) {
    for (const auto& [key, value] : table.rows[row].figures) {
      if (key == name) return value.value();
    }
    return Estimate{NAN, NAN};
  };
  EXPECT_EQ(figure(1, "distance to base").value, 0);
  EXPECT_NEAR(figure(0, "variance within classes").value, 1,
              4 * figure(0, "variance within classes").se + 0.2);
  EXPECT_NEAR(
      figure(1, "matched error").value,
      (g->generate(pairs.noise, {}) - pairs.targets().images).square().mean().item<double>(), 1e-5);
  EXPECT_LT(figure(2, "matched error").value, 0.5 * figure(1, "matched error").value);
  EXPECT_GT(figure(3, "held-out error").value, 1.2 * figure(1, "held-out error").value);
  EXPECT_GT(figure(2, "matched error").se, 0);
}

TEST(train_sft, TheLossIsWhatItSaysAndSoIsItsGradient) {
  const auto g = small_generator();
  const AssignedSet pairs = pairs_for(*g);
  OneStepConfig c = quick_onestep();
  c.sft.l1 = 0.5;
  c.sft.preserve = 0.7;
  c.sft.anchor = 0.3;
  c.sft.validation = 0;
  c.sft.batch = 120;
  c.sft.micro_batch = 120;
  SftObjective objective(g, small_generator(0.6), pairs, c.sft, 3);
  EXPECT_TRUE(std::isnan(objective.validate(objective.trainable())));
  const auto loss = [&] {
    objective.begin_step(0);
    return objective.micro_batch(0);
  };
  const LossReport first = loss();
  const std::map<std::string, double> metrics = first.metrics.averages();
  EXPECT_LT(metrics.at("preserve_loss"),
            1e-12);  // weights are those of the start: nothing to preserve yet
  const at::Tensor d = (g->generate(pairs.noise, {}) - pairs.targets().images).flatten(1);
  EXPECT_NEAR(metrics.at("matched_loss"),
              (d.square().mean(1) + 0.5 * d.abs().mean(1)).mean().item<double>(), 1e-6);
  EXPECT_NEAR(first.loss.item<double>(),
              metrics.at("matched_loss") + 0.3 * metrics.at("anchor_loss"), 1e-6);
  at::Tensor w = objective.trainable().at("0.weight");
  {
    const at::NoGradGuard no_grad;
    w.add_(kOneStepStreams.normal(Purpose::kProbe, 0, 0, 0, 16, {8}) *
           0.05);  // where every term has a slope
  }
  const at::Tensor gradient = torch::autograd::grad({loss().loss}, {w})[0];
  const at::Tensor direction = gradient / gradient.norm();
  double difference = 0;
  for (const double h : {0.005, -0.005}) {
    const at::NoGradGuard no_grad;
    const at::Tensor kept = w.clone();
    w.add_(direction * h);
    difference += loss().loss.item<double>() / (2 * h);
    w.copy_(kept);
  }
  EXPECT_NEAR(difference / (gradient * direction).sum().item<double>(), 1, 5e-3);
}

TEST(train_sft, FrozenStatisticsStayAndTrainedOnesMove) {
  const test::TempDir dir;
  const std::shared_ptr<const Generator> g =
      load_generator(test::golden_onestep("mnist_generator.safetensors"));
  const std::int64_t n = 24;
  const std::int64_t d = noise_size(*g);
  const at::Tensor z = kOneStepStreams.normal(Purpose::kExact, 0, 0, 0, n, {d});
  const at::Tensor labels = at::remainder(at::arange(n, at::kLong), g->classes());
  const AssignedSet pairs{z,
                          z,
                          bytes_of(g->generate(z, labels)),
                          labels,
                          at::arange(n, at::kLong),
                          at::zeros({n}, at::kDouble)};
  OneStepConfig c = quick_onestep();
  c.train.steps = 4;
  c.sft.validation = 0.25;
  c.sft.evaluate_every = 2;
  c.sft.batch = 8;
  c.sft.micro_batch = 4;
  const ParameterSet start = clone(g->parameters(), false);
  for (const bool frozen : {true, false}) {
    c.sft.batch_norm = frozen ? "frozen" : "train";
    c.sft.validation = frozen ? 0.25 : 0;
    const auto tuned = load_generator(tune(g, pairs, c, dir / c.sft.batch_norm).file);
    EXPECT_EQ(
        at::equal(tuned->parameters().at("net.1.running_mean"), start.at("net.1.running_mean")),
        frozen);
  }
  for (const auto& [name, tensor] : start) {
    EXPECT_TRUE(at::equal(tensor, g->parameters().at(name)))
        << name << ": the starting generator is not written to";
  }
  // The result is the best on held-out pairs: with a hopeless step size that is the start itself.
  c.sft.batch_norm = "frozen";
  c.sft.validation = 0.5;
  c.train.optimizer.learning_rate = 5;
  const auto kept = load_generator(tune(g, pairs, c, dir / "wild").file);
  for (const auto& [name, tensor] : start) {
    EXPECT_TRUE(at::equal(tensor, kept->parameters().at(name))) << name;
  }
}

TEST(train_sft, LowRankChangesOnlyWhatItAdapts) {
  const test::TempDir dir;
  const std::shared_ptr<const Generator> g =
      load_generator(test::golden_onestep("mnist_generator.safetensors"));
  const std::int64_t n = 16;
  const at::Tensor z = kOneStepStreams.normal(Purpose::kExact, 0, 0, 0, n, {noise_size(*g)});
  const at::Tensor labels = at::remainder(at::arange(n, at::kLong), g->classes());
  const AssignedSet pairs{z,
                          z,
                          bytes_of(-g->generate(z, labels)),
                          labels,
                          at::arange(n, at::kLong),
                          at::zeros({n}, at::kDouble)};
  OneStepConfig c = quick_onestep();
  c.train.steps = 12;
  c.sft.batch = 8;
  c.sft.micro_batch = 4;
  c.sft.policy = "lora";
  c.sft.rank = 2;
  c.sft.trainable = {"net.*"};
  c.sft.validation = 0;
  const GeneratorPolicy policy(g, c.sft, kOneStepStreams);
  const ParameterSet same = policy.weights(policy.trainable());
  for (const auto& [name, tensor] : g->parameters()) {
    EXPECT_TRUE(at::equal(tensor, same.at(name))) << name;
  }
  const auto tuned = load_generator(tune(g, pairs, c, dir / "lora").file);
  for (const auto& [name, tensor] : g->parameters()) {
    const bool adapted = name.rfind("net.", 0) == 0 && tensor.dim() >= 2;
    EXPECT_EQ(at::equal(tensor, tuned->parameters().at(name)), !adapted) << name;
    if (adapted) {
      EXPECT_EQ((at::linalg_svdvals(
                     (tuned->parameters().at(name) - tensor).flatten(1).to(at::kDouble)) > 1e-5)
                    .sum()
                    .item<std::int64_t>(),
                std::min<std::int64_t>(2, tensor.size(0)))
          << name;
    }
  }
  c.sft.trainable = {"nothing*"};
  test::expect_error(ErrorKind::kConfig, "no tensor matches",
                     [&] { GeneratorPolicy(g, c.sft, kOneStepStreams); });
  AssignedSet wrong = pairs;
  wrong.noise = at::zeros({n, 3});
  c.sft.trainable = {"*"};
  test::expect_error(ErrorKind::kBadFile, "the generator takes",
                     [&] { SftObjective(g, g, wrong, c.sft, 0); });
}

}  // namespace tiltflow
