#include <set>

#include "tests/finetune/method_bench.h"
#include "tests/support.h"
#include "tiltflow/finetune/methods.h"

namespace tiltflow {
namespace {

using test::MethodBench;

}  // namespace

// On-policy the gradient of the variance is twice that of the relative entropy E[cost - r], in
// expectation.
TEST(finetune_methods, OptionsAct) {
  const MethodBench b;
  const auto endpoint = [&](const std::string& name, auto change) {
    EndpointConfig c;
    c.advantage = {4, "group", 5};
    change(c);
    EndpointRegression method(name, c);
    return b.loss(method).item<double>();
  };
  const auto plain = [](EndpointConfig&) {};
  EXPECT_NE(endpoint("diffusion-nft", plain),
            endpoint("diffusion-nft", [](EndpointConfig& c) { c.self_weight = true; }));
  EXPECT_NE(endpoint("advantage-flow", plain),
            endpoint("advantage-flow", [](EndpointConfig& c) { c.self_weight = true; }));
  EXPECT_NE(endpoint("dpo", plain),
            endpoint("dpo", [](EndpointConfig& c) { c.soft_labels = true; }));
  EXPECT_NE(endpoint("best-of-group", plain),
            endpoint("best-of-group", [](EndpointConfig& c) { c.preserve = 1; }));
  EXPECT_NE(endpoint("dpo", plain), endpoint("dpo", [](EndpointConfig& c) { c.preserve = 1; }));
  DirectGradientConfig c;
  c.last = 5;
  c.random_last = true;
  DirectGradient random("draft", c);
  EXPECT_EQ(random.training_calls(b.table), 3);  // 1..5, the mean
  std::set<double> losses;
  for (std::int64_t step = 0; step < 8; ++step) {
    random.begin_step(b.context(), step, 0);
    losses.insert(static_cast<double>(random.collect(b.context(), 0, 0, 2, false).noises.size()));
  }
  EXPECT_GT(losses.size(), 2U);  // windows of several lengths
  c = {};
  c.copies = 5;
  c.graph_steps = 2;
  EXPECT_EQ(DirectGradient("draft-lv", c).training_calls(b.table), 6);
  EXPECT_EQ(DirectGradient("drtune", c).training_calls(b.table), 3);
  c.late_fraction = 0.01;  // the last step only
  DirectGradient late("refl", c);
  for (std::int64_t step = 0; step < 4; ++step) {
    late.begin_step(b.context(), step, 0);
    EXPECT_EQ(late.collect(b.context(), 0, 0, 2, false).noises.size(), 1U);
  }
}

TEST(finetune_methods, TableNeedsAndRefusals) {
  EXPECT_GE(method_listing().size(), 16U);
  MethodBench b;
  const RewardInfo blind{"blind", false, ""};
  const RewardInfo open{"open", true, ""};
  TransitionTable noiseless = b.table;
  noiseless.steps.back().s = 0;
  for (const MethodListing& m : method_listing()) {
    MethodConfig c;
    c.name = m.name;
    const auto method = make_method(c);
    EXPECT_EQ(method->name(), m.name);
    EXPECT_NE(m.calls.find(" | "), std::string::npos) << m.name;
    const MethodNeeds needs = method->needs();
    const auto refused = [&](const RewardInfo& reward, const TransitionTable& table) {
      try {
        require_method_fits(*method, reward, table);
        return false;
      } catch (const Error& error) {
        EXPECT_FALSE(error.hint().empty());
        return true;
      }
    };
    EXPECT_EQ(refused(blind, b.table), needs.reward_gradient) << m.name;
    EXPECT_EQ(refused(open, noiseless), needs.step_density) << m.name;
    EXPECT_EQ(m.needs.find("reward gradient") != std::string::npos, needs.reward_gradient)
        << m.name;
    EXPECT_EQ(m.needs.find("noise") != std::string::npos, needs.step_density) << m.name;
    EXPECT_EQ(m.needs.find("groups") != std::string::npos, needs.group > 1) << m.name;
  }
}

}  // namespace tiltflow
