// Warnings in words: which histories give which, and which give none.
#include <cmath>

#include "tests/support.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/reward/importance.h"
#include "tiltflow/tensor/random.h"
#include "tiltflow/train/diagnosis.h"

namespace tiltflow {
namespace {

using Values = std::map<std::string, double>;
using Kinds = std::vector<std::string>;

std::vector<LoggedMetrics> history_of(std::int64_t steps,
                                      const std::function<Values(std::int64_t)>& at) {
  std::vector<LoggedMetrics> out;
  for (std::int64_t step = 1; step <= steps; ++step) out.push_back({step, at(step)});
  return out;
}

std::vector<std::string> kinds_of(const std::vector<LoggedMetrics>& history,
                                  const RunFacts& facts) {
  std::vector<std::string> out;
  for (const RunWarning& warning : diagnose(history, facts)) out.push_back(warning.kind);
  return out;
}

RunFacts finetuning() {
  RunFacts facts;
  facts.base = RunFacts::Base{1, 0.05};
  facts.batch = 16;
  facts.micro_batch = 8;
  return facts;
}

double jitter(std::int64_t step) {
  return RandomStreams(3)
      .normal(Purpose::kProbe, static_cast<std::uint32_t>(step), 0, 0, 1, {})[0]
      .item<double>();
}

}  // namespace

TEST(train_diagnosis, ControlThatCostsMoreThanItGains) {
  const auto run = [](double cost, double gain) {
    return history_of(8, [=](std::int64_t step) {
      return Values{{"reward", 1 + gain + 0.02 * jitter(step)},
                    {"reward_deviation", 1.0},
                    {"control_cost", cost}};
    });
  };
  EXPECT_EQ(kinds_of(run(0.9, 2), finetuning()), Kinds{});
  EXPECT_EQ(kinds_of(run(2.1, 2), finetuning()), Kinds{}) << "within a nat and the errors";
  EXPECT_EQ(kinds_of(run(40, 2), finetuning()), Kinds{"control-cost"});
  EXPECT_EQ(kinds_of(run(40, 60), finetuning()), Kinds{}) << "a large scale pays for a large cost";
  const std::string text = text_of(diagnose(run(40, 2), finetuning())[0]);
  for (const char* part : {"40 nats", "gained 2", "farther from p*", "train.learning_rate"}) {
    EXPECT_NE(text.find(part), std::string::npos) << text;
  }
  RunFacts guided = finetuning();
  guided.base.reset();
  EXPECT_EQ(kinds_of(run(40, 2), guided), Kinds{}) << "base samples are of another law";
}

TEST(train_diagnosis, RepeatedBatchesCountOnce) {
  RunFacts facts = finetuning();
  facts.buffer_passes = 4;
  const auto history = history_of(19, [](std::int64_t) {
    return Values{{"reward", 1.0}, {"reward_deviation", 1.0}, {"control_cost", 40.0}};
  });
  EXPECT_EQ(kinds_of(history, facts), Kinds{}) << "four batches and a part";
  facts.buffer_passes = 3;
  EXPECT_EQ(kinds_of(history, facts), Kinds{"control-cost"});
}

TEST(train_diagnosis, LossThatRises) {
  const RunFacts facts;
  const auto losses = [](const std::function<double(std::int64_t)>& loss) {
    return history_of(200, [=](std::int64_t step) { return Values{{"loss", loss(step)}}; });
  };
  EXPECT_EQ(kinds_of(losses([](std::int64_t s) {
                       return 0.1 +
                              std::exp(-0.02 * static_cast<double>(s)) * (1 + 0.2 * jitter(s));
                     }),
                     facts),
            Kinds{});
  EXPECT_EQ(kinds_of(losses([](std::int64_t s) { return std::exp(1.5 * jitter(s)); }), facts),
            Kinds{})
      << "heavy tails are no trend";
  EXPECT_EQ(kinds_of(losses([](std::int64_t s) { return s == 198 ? 1e6 : 1.0; }), facts), Kinds{})
      << "nor is one bad batch";
  const auto diverging = [](std::int64_t s) {
    return 0.1 + std::exp(-0.1 * static_cast<double>(s)) +
           (s > 120 ? 0.01 * static_cast<double>(s - 120) : 0.0);
  };
  EXPECT_EQ(kinds_of(losses(diverging), facts), Kinds{"loss"});
  EXPECT_EQ(kinds_of(losses([&](std::int64_t s) { return diverging(s) - 2; }), facts), Kinds{})
      << "a loss without a floor";
  RunFacts reused;
  reused.buffer_passes = 10;
  const auto by_batch = [](double trend) {
    return history_of(600, [=](std::int64_t step) {
      const std::int64_t batch = step / 10;
      return Values{{"loss", std::exp(0.8 * jitter(batch) + trend * static_cast<double>(batch))}};
    });
  };
  const std::vector<LoggedMetrics> steady = by_batch(0);
  for (std::size_t steps = 60; steps <= steady.size(); steps += 10) {
    EXPECT_EQ(
        kinds_of({steady.begin(), steady.begin() + static_cast<std::ptrdiff_t>(steps)}, reused),
        Kinds{})
        << "a batch is one observation, however often it is used: " << steps;
  }
  EXPECT_EQ(kinds_of(by_batch(0.1), reused), Kinds{"loss"});
  RunFacts adversarial;
  adversarial.loss_falls = false;
  EXPECT_EQ(kinds_of(losses(diverging), adversarial), Kinds{});
}

TEST(train_diagnosis, Gradients) {
  RunFacts facts;
  facts.gradient_clip = 1;
  const auto norms = [](std::int64_t steps, const std::function<double(std::int64_t)>& norm) {
    return history_of(steps,
                      [=](std::int64_t step) { return Values{{"gradient_norm", norm(step)}}; });
  };
  const auto large = [](std::int64_t s) { return s % 2 == 0 ? 20.0 : 50.0; };
  EXPECT_EQ(kinds_of(norms(100, large), facts), Kinds{"gradient-clip"});
  EXPECT_EQ(kinds_of(norms(99, large), facts), Kinds{});
  EXPECT_EQ(kinds_of(norms(100, [&](std::int64_t s) { return s == 50 ? 0.9 : large(s); }), facts),
            Kinds{})
      << "it rests now and then";
  EXPECT_EQ(kinds_of(norms(100, [](std::int64_t s) { return s % 2 == 0 ? 20.0 : 30.0; }), facts),
            Kinds{})
      << "all batches are shortened alike";
  EXPECT_EQ(kinds_of(norms(100, [](std::int64_t) { return 5.0; }), facts), Kinds{})
      << "a few times the limit";
  EXPECT_EQ(kinds_of(norms(10, [](std::int64_t) { return 0.0; }), facts), Kinds{"gradient-zero"});
  EXPECT_EQ(kinds_of(norms(10, [](std::int64_t s) { return s == 4 ? 1e-9 : 0.0; }), facts),
            Kinds{});
}

TEST(train_diagnosis, WeightsThatRestOnOneSample) {
  const auto history = [](double ess) {
    return history_of(5, [=](std::int64_t) { return Values{{"ess", ess}}; });
  };
  EXPECT_EQ(kinds_of(history(0.13), finetuning()), Kinds{"weights"}) << "1.04 of 8";
  EXPECT_EQ(kinds_of(history(0.25), finetuning()), Kinds{});
}

TEST(train_diagnosis, AverageThatLagsBehindTwice) {
  const auto run = [](double second) {
    return history_of(40, [=](std::int64_t step) {
      if (step % 20 == 0) {
        return Values{{"eval_reward", step == 20 ? 1.1 : second}, {"eval_reward_se", 0.05}};
      }
      return Values{{"reward", 5.0}, {"reward_deviation", 0.5}};
    });
  };
  EXPECT_EQ(kinds_of(run(1.2), finetuning()), Kinds{"average"});
  EXPECT_EQ(kinds_of(run(4.9), finetuning()), Kinds{}) << "it has caught up";
  const auto ahead = history_of(40, [](std::int64_t step) {
    if (step % 20 == 0) return Values{{"eval_reward", 9.0}, {"eval_reward_se", 0.05}};
    return Values{{"reward", 5.0}, {"reward_deviation", 0.5}};
  });
  EXPECT_EQ(kinds_of(ahead, finetuning()), Kinds{})
      << "an average may be better than the current weights";
}

TEST(train_diagnosis, ScaleBeyondTheBase) {
  const at::Tensor unit = RandomStreams(1).normal(Purpose::kProbe, 0, 0, 0, 512, {}, at::kDouble);
  EXPECT_TRUE(diagnose_base_rewards(unit, {}, {1}).empty());
  const auto few = diagnose_base_rewards(unit * 5, {}, {5});
  ASSERT_EQ(few.size(), 1u);
  EXPECT_EQ(few[0].kind, "effective-size");
  const auto far = diagnose_base_rewards(unit * 300, {}, {600});
  ASSERT_EQ(far.size(), 1u);
  EXPECT_EQ(far[0].kind, "scale");
  EXPECT_NE(far[0].seen.find("effective sample size of 1"), std::string::npos) << far[0].seen;
  const double factor = factor_for_effective_size(unit * 300, {}, 0.1);
  EXPECT_NEAR(importance_weights(unit * 300 * factor, {}).ess, 51.2, 0.1);
  EXPECT_NE(far[0].change.find(cat("reward[0].scale = ", compact(600 * factor, 2))),
            std::string::npos)
      << far[0].change;
  EXPECT_NE(diagnose_base_rewards(unit * 300, {}, {600, 1})[0].change.find("every reward[].scale"),
            std::string::npos);
  EXPECT_EQ(diagnose_base_rewards(unit * 1e-3, {}, {2})[0].kind, "scale") << "nothing to be seen";
  EXPECT_EQ(diagnose_base_rewards(unit * 0, {}, {2})[0].kind, "reward-constant");
  EXPECT_EQ(factor_for_effective_size(unit, {}, 0.1), 1);
}

// A reward that separates two labels by 100 nats spreads over a nat within each: both laws are
// sampled well.
TEST(train_diagnosis, SpreadIsThatWithinLabels) {
  const at::Tensor labels = at::arange(512).remainder(2);
  const at::Tensor unit = RandomStreams(1).normal(Purpose::kProbe, 0, 0, 0, 512, {}, at::kDouble);
  EXPECT_TRUE(diagnose_base_rewards(unit + labels * 100, labels, {1}).empty());
  EXPECT_TRUE(diagnose_base_rewards(unit + labels * 100, {}, {1}).empty())
      << "without labels half of the samples carry all weight, which is enough";
  EXPECT_EQ(diagnose_base_rewards(unit * 30 + labels * 100, labels, {1})[0].kind, "scale");
}

TEST(train_diagnosis, ZeroRewardGradients) {
  EXPECT_FALSE(diagnose_zero_gradients(0.5));
  EXPECT_EQ(diagnose_zero_gradients(0.75)->kind, "reward-gradient");
  const std::vector<LoggedMetrics> history{{10, {{"eval_reward_gradient_zero", 1.0}}}};
  EXPECT_EQ(kinds_of(history, {}), Kinds{"reward-gradient"});
}

TEST(train_diagnosis, ClassBalance) {
  EXPECT_FALSE(diagnose_class_balance({100, 90, 10}, {"a", "b", "c"}));
  EXPECT_NE(diagnose_class_balance({100, 90, 9}, {"a", "b", "c"})
                ->seen.find("class a has 100 pictures, class c 9"),
            std::string::npos);
  EXPECT_NE(diagnose_class_balance({100, 0, 9}, {"a", "b", "c"})
                ->seen.find("1 of 3 classes have no picture: b"),
            std::string::npos);
  EXPECT_FALSE(diagnose_class_balance({100}, {"a"}));
}

TEST(train_diagnosis, EveryKindIsDocumented) {
  const std::string text = read_file(test::source_dir() / "docs/warnings.md");
  for (const std::string& kind : warning_kinds()) {
    EXPECT_NE(text.find(cat("| `", kind, "` |")), std::string::npos) << kind;
  }
}

}  // namespace tiltflow
