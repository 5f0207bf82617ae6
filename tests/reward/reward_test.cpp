#include "tiltflow/reward/reward.h"

#include "tests/support.h"
#include "tiltflow/models/model_file.h"
#include "tiltflow/reward/state_reward.h"

namespace tiltflow {
namespace {

RewardTerm term(const std::string& name, double scale) {
  RewardTerm t;
  t.name = name;
  t.scale = scale;
  return t;
}

class Broken final : public Reward {
 public:
  explicit Broken(std::string how) : how_(std::move(how)) {}
  const RewardInfo& info() const override { return info_; }
  at::Tensor score(const at::Tensor& x, const RewardCondition&) const override {
    const at::Tensor sum = x.flatten(1).sum(1);
    if (how_ == "constant") return sum * 0 + 1;
    if (how_ == "nan") return sum / 0.0 * 0.0;
    if (how_ == "detached") return sum.detach();
    if (how_ == "wrong gradient") {
      return sum.square().detach() + sum * 3 - (sum * 3).detach();  // value x^2, gradient 3
    }
    return sum;
  }

 private:
  std::string how_;
  RewardInfo info_{"broken", true, ""};
};

double check(const std::string& how) {
  const StateReward reward(std::make_shared<Broken>(how), identity_decoder());
  return check_reward(reward, at::randn({4, 6}), {}, RandomStreams(1));
}

}  // namespace

TEST(reward_closed_form, ValuesAndGradients) {
  const at::Tensor images = at::rand({3, 1, 4, 4});
  EXPECT_LT((make_reward(term("ink", 1))->score(images, {}) - images.mean({1, 2, 3}))
                .abs()
                .max()
                .item<double>(),
            1e-6);
  RewardTerm linear = term("linear", 1);
  linear.slope = {2};
  EXPECT_LT((make_reward(linear)->score(images, {}) - 2 * images.sum({1, 2, 3}))
                .abs()
                .max()
                .item<double>(),
            1e-4);
  RewardTerm quadratic = term("quadratic", 3);
  quadratic.center = {0.5};
  quadratic.curvature = 2;
  const auto sum = make_weighted_sum({term("ink", 5), quadratic});
  const at::Tensor expected =
      5 * images.mean({1, 2, 3}) - 3 * (images - 0.5).square().sum({1, 2, 3});
  EXPECT_LT((sum->score(images, {}) - expected).abs().max().item<double>(), 1e-4);
  const StateReward state(sum, pixel_decoder());
  EXPECT_LT(check_reward(state, at::randn({4, 1, 4, 4}), {}, RandomStreams(2)), 0.01);
  // the decoder's factor 1/2 is in the gradient
  const StateReward ink(make_reward(term("ink", 1)), pixel_decoder());
  EXPECT_NEAR(
      ink.score_and_gradient(at::randn({2, 1, 4, 4}), {}).gradient[0][0][0][0].item<double>(),
      0.5 / 16, 1e-7);
}

TEST(reward_check, BrokenRewardsAreRefused) {
  EXPECT_LT(check("sound"), 1e-3);
  test::expect_error(ErrorKind::kConfig, "constant", [] { check("constant"); });
  test::expect_error(ErrorKind::kConfig, "gradient", [] { check("detached"); });
  test::expect_error(ErrorKind::kConfig, "finite differences", [] { check("wrong gradient"); });
  test::expect_error(ErrorKind::kNonFinite, "NaN", [] { check("nan"); });
}

// Every way to a score tells a broken reward from a policy that has diverged.
TEST(reward_check, ScoresThatAreNotFiniteNameTheirCause) {
  const StateReward broken(std::make_shared<Broken>("nan"), identity_decoder());
  const StateReward sound(std::make_shared<Broken>("sound"), identity_decoder());
  const at::Tensor finite = at::ones({4, 6});
  const at::Tensor diverged = finite / 0.0;
  using Scored = std::function<void(const StateReward&, const at::Tensor&)>;
  const std::vector<Scored> ways{
      [](const StateReward& r, const at::Tensor& x) { r.score(x, {}); },
      [](const StateReward& r, const at::Tensor& x) { r.score_terms(x, {}); },
      [](const StateReward& r, const at::Tensor& x) { r.score_with_graph(x, {}); },
      [](const StateReward& r, const at::Tensor& x) { r.score_and_gradient(x, {}); }};
  for (const Scored& way : ways) {
    test::expect_error(ErrorKind::kNonFinite, "at finite samples", [&] { way(broken, finite); });
    test::expect_error(ErrorKind::kNonFinite, "the samples to be scored",
                       [&] { way(sound, diverged); });
  }
}

TEST(reward_registry, MistakesAreNamed) {
  test::expect_error(ErrorKind::kConfig, "did you mean 'quadratic'",
                     [] { make_reward(term("quadratc", 1)); });
  test::expect_error(ErrorKind::kConfig, "center is missing",
                     [] { make_reward(term("quadratic", 1)); });
  test::expect_error(ErrorKind::kConfig, "slope is missing",
                     [] { make_reward(term("linear", 1)); });
  test::expect_error(ErrorKind::kConfig, "no reward", [] { make_weighted_sum({}); });
  RewardTerm linear = term("linear", 1);
  linear.slope = {1, 2, 3};
  test::expect_error(ErrorKind::kConfig, "has 3 numbers",
                     [&] { make_reward(linear)->score(at::zeros({1, 4}), {}); });
}

TEST(reward_class, LogProbabilitiesOfAJudge) {
  const test::TempDir dir;
  ClassifierConfig config;
  config.input_size = 8;
  config.width = 4;
  config.features = 6;
  config.num_classes = 3;
  save_classifier(dir / "j.safetensors", config, init_classifier(config, RandomStreams(1)));
  RewardTerm t = term("class-log-prob", 1);
  t.judge = (dir / "j.safetensors").string();
  t.label = 2;
  const at::Tensor images = at::rand({4, 1, 8, 8});
  const auto judge = load_classifier(t.judge);
  EXPECT_LT((make_reward(t)->score(images, {}) - judge->logits(images).log_softmax(1).select(1, 2))
                .abs()
                .max()
                .item<double>(),
            1e-6);
  EXPECT_LT(check_reward(StateReward(make_reward(t), pixel_decoder()), at::randn({4, 1, 8, 8}), {},
                         RandomStreams(3)),
            0.05);
  t.label = -1;
  const at::Tensor labels = at::tensor(std::vector<std::int64_t>{0, 1, 2, 0});
  EXPECT_LT(
      (make_reward(t)->score(images, {labels})[1] - judge->logits(images).log_softmax(1)[1][1])
          .abs()
          .item<double>(),
      1e-6);
  test::expect_error(ErrorKind::kConfig, "conditional samples",
                     [&] { make_reward(t)->score(images, {}); });
  t.label = 3;
  test::expect_error(ErrorKind::kConfig, "out of range", [&] { make_reward(t); });
}

}  // namespace tiltflow
