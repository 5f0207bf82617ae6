// Averaged weights.
#include <malloc.h>

#include "tests/same_bytes.h"
#include "tests/support.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/models/model_file.h"
#include "tiltflow/train/finetuning.h"
#include "tiltflow/train/optimizer.h"

namespace tiltflow {

// The decay is (1 + n)/(10 + n) until it reaches the configured one: 1/10, 2/11, then 0.25.
TEST(train_optimizer, StartsQuicklyThenKeepsItsDecay) {
  ParameterSet weights;
  weights.add("w", at::zeros({1}, at::kDouble));
  WeightAverage average(weights, 0.25);
  double expected = 0;
  for (const auto& [updates, decay] : std::vector<std::pair<std::int64_t, double>>{
           {0, 1.0 / 10}, {1, 2.0 / 11}, {2, 0.25}, {50, 0.25}}) {
    at::Tensor w = weights.at("w");
    w.fill_(1.0 + static_cast<double>(updates));
    average.update(updates);
    expected = decay * expected + (1 - decay) * w.item<double>();
    EXPECT_NEAR(average.values().at("w").item<double>(), expected, 1e-12) << updates;
  }
}

TEST(train_optimizer, StepsEqualTheOfficialOnes) {
  const auto loaded =
      load_velocity_model(test::golden("sit_a_ema.safetensors"), {{"num_heads", "4"}});
  const ParameterSet g = read_safetensors(test::golden("train_steps.safetensors")).tensors;
  const Policy policy = full_policy(*loaded.model);
  OptimizerConfig config;
  AdamW optimizer(config, policy.trainable);
  const auto path = make_path("linear");
  for (std::int64_t step = 0; step < 3; ++step) {
    const at::AutoGradMode grad(true);
    const at::Tensor t = g.at("u")[step];
    const at::Tensor x0 = g.at("x0")[step];
    const at::Tensor x1 = g.at("x1")[step];
    const at::Tensor time = t.view({-1, 1, 1, 1});
    const at::Tensor v = policy.tuned->velocity(time * x1 + (1 - time) * x0, t, {g.at("y")[step]});
    const at::Tensor loss = (v - (x1 - x0)).square().flatten(1).mean(1).mean();
    EXPECT_NEAR(loss.item<double>() / g.at("loss")[step].item<double>(), 1, 1e-5);
    std::vector<at::Tensor> gradients =
        torch::autograd::grad({loss}, policy.trainable.tensors(), {}, false, false, true);
    for (std::size_t i = 0; i < gradients.size(); ++i) {
      if (!gradients[i].defined()) gradients[i] = at::zeros_like(policy.trainable.tensors()[i]);
    }
    EXPECT_NEAR(clip_gradients(gradients, 0) / g.at("grad_norm")[step].item<double>(), 1, 1e-4);
    optimizer.step(gradients, 1e-3);
  }
  for (const auto& [name, tensor] : g) {
    if (name.rfind("after.", 0) != 0) continue;
    at::Tensor found = policy.trainable.at(name.substr(6)).detach();
    at::Tensor expected = tensor;
    // The gradient of a key bias is zero (softmax ignores it); Adam turns its rounding into steps
    // of any sign.
    if (name == "after.blocks.0.attn.qkv.bias") {
      found = at::cat({found.narrow(0, 0, 40), found.narrow(0, 80, 40)});
      expected = at::cat({expected.narrow(0, 0, 40), expected.narrow(0, 80, 40)});
    }
    EXPECT_LT(test::relative_error(found, expected), 1e-4) << name;
  }
}

TEST(train_optimizer, Schedules) {
  OptimizerConfig c;
  c.warmup = 4;
  c.final_fraction = 0.1;
  EXPECT_NEAR(schedule_factor(c, 0, 100), 0.25, 1e-12);
  EXPECT_NEAR(schedule_factor(c, 4, 100), 1, 1e-12);
  EXPECT_NEAR(schedule_factor(c, 100, 100), 0.1, 1e-12);
  c.schedule = "linear";
  EXPECT_NEAR(schedule_factor(c, 52, 100), 0.55, 1e-12);
  c.schedule = "constant";
  EXPECT_NEAR(schedule_factor(c, 99, 100), 1, 1e-12);
}

TEST(train_optimizer, ClippingKeepsTheDirection) {
  std::vector<at::Tensor> g{at::full({4}, 3.0), at::full({4}, 4.0)};
  EXPECT_NEAR(clip_gradients(g, 1), 10, 1e-6);
  EXPECT_NEAR(g[0][0].item<double>(), 0.3, 1e-6);
  EXPECT_NEAR(g[1][0].item<double>(), 0.4, 1e-6);
}

}  // namespace tiltflow
