#include "tiltflow/sampler/fields.h"
#include "tests/support.h"
#include "tiltflow/models/model_file.h"

namespace tiltflow {

TEST(sampler_fields, GuidanceAndCounting) {
  const auto loaded =
      load_velocity_model(test::golden("sit_b_ema.safetensors"), {{"num_heads", "3"}});
  const std::shared_ptr<const VelocityModel> model(
      loaded.model->rebind(loaded.model->parameters(), {}));
  const at::Tensor x = at::randn({2, 1, 28, 28});
  const at::Tensor t = at::full({2}, 0.4);
  const Condition labels{at::tensor(std::vector<std::int64_t>{1, 5})};
  const at::NoGradGuard no_grad;
  const at::Tensor conditional = model->velocity(x, t, labels);
  const at::Tensor unconditional = model->velocity(x, t, {});
  EXPECT_LT(test::relative_error(GuidedField(model, {3}, 10).velocity(x, t, labels),
                                 unconditional + (conditional - unconditional) * 3),
            1e-5);
  EXPECT_LT(test::relative_error(GuidedField(model, {1}, 10).velocity(x, t, labels), conditional),
            1e-5);
  const CountingField counted(model);
  counted.velocity(x, t, labels);
  counted.vjp(x, t, labels, x);
  EXPECT_EQ(counted.count(), 2 + 4);
}

TEST(sampler_fields, GuidanceActsInItsIntervalOnly) {
  const std::shared_ptr<const VelocityModel> model =
      load_velocity_model(test::golden("sit_b_ema.safetensors"), {{"num_heads", "3"}}).model;
  const at::Tensor x = RandomStreams(1).normal(Purpose::kProbe, 0, 0, 0, 3, {1, 28, 28});
  const Condition labels{at::arange(3)};
  Guidance inner{5, 0, 0.3, 0.6};
  const auto field = guided(model, inner, 10);
  const auto always = guided(model, {5}, 10);
  const at::Tensor t = at::tensor({0.1F, 0.5F, 0.9F});
  const at::Tensor mixed = field->velocity(x, t, labels);
  const at::Tensor plain = model->velocity(x, t, labels);
  const at::Tensor full = always->velocity(x, t, labels);
  EXPECT_LT((mixed[0] - plain[0]).abs().max().item<double>(), 1e-5);
  EXPECT_LT((mixed[1] - full[1]).abs().max().item<double>(), 1e-5);
  EXPECT_LT((mixed[2] - plain[2]).abs().max().item<double>(), 1e-5);
  EXPECT_GT((plain[1] - full[1]).abs().max().item<double>(), 1e-2);
  CountingField counted(model);
  const auto over = guided(
      std::shared_ptr<const VelocityField>(&counted, [](const VelocityField*) {}), inner, 10);
  over->velocity(x, time_tensor(0.1, x), labels);
  EXPECT_EQ(counted.count(), 3) << "outside the interval one evaluation is enough";
  EXPECT_EQ(guided(model, {1}, 10), model);
  EXPECT_THROW(guided(model, {2, 0, 0.5, 0.5}, 10), Error);
  EXPECT_THROW(guided(model, {2}, 0), Error);
}

}  // namespace tiltflow
