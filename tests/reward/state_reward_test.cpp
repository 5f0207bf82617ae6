#include "tiltflow/reward/state_reward.h"
#include "tests/support.h"
#include "tiltflow/reward/reward.h"

namespace tiltflow {
namespace {

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

TEST(reward_state_reward, BrokenRewardsAreRefused) {
  EXPECT_LT(check("sound"), 1e-3);
  test::expect_error(ErrorKind::kConfig, "constant", [] { check("constant"); });
  test::expect_error(ErrorKind::kConfig, "gradient", [] { check("detached"); });
  test::expect_error(ErrorKind::kConfig, "finite differences", [] { check("wrong gradient"); });
  test::expect_error(ErrorKind::kNonFinite, "NaN", [] { check("nan"); });
}

// Every way to a score tells a broken reward from a policy that has diverged.
TEST(reward_state_reward, ScoresThatAreNotFiniteNameTheirCause) {
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

}  // namespace tiltflow
