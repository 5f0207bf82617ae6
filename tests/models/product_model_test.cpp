#include "tiltflow/models/product/product_model.h"
#include "tests/support.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/safetensors.h"
#include "tiltflow/models/mixture/mixture_model.h"
#include "tiltflow/models/sit/sit.h"
#include "tiltflow/train/finetuning.h"

namespace tiltflow {
namespace {

SitConfig small_sit() {
  SitConfig c = sit_config_from_args({{"input_size", "8"},
                                      {"patch_size", "4"},
                                      {"in_channels", "1"},
                                      {"hidden_size", "12"},
                                      {"depth", "1"},
                                      {"num_heads", "2"},
                                      {"num_classes", "3"},
                                      {"learn_sigma", "False"}});
  return c;
}

std::shared_ptr<const VelocityModel> sit(std::uint64_t seed) {
  ParameterSet weights;
  std::uint32_t key = 0;
  for (const auto& [name, tensor] : init_sit(small_sit(), RandomStreams(seed))) {
    weights.add(name, tensor + 0.05 * RandomStreams(seed).normal(Purpose::kProbe, ++key, 0, 0, 1,
                                                                 tensor.sizes())[0]);
  }
  return make_sit(small_sit(), weights);
}

}  // namespace

TEST(models_product_model, EveryAgentMovesItsOwnPart) {
  const auto a = sit(1);
  const auto b = sit(2);
  const ProductModel both({a, b});
  EXPECT_EQ(both.sample_shape(), (std::vector<std::int64_t>{2, 8, 8}));
  EXPECT_EQ(both.linear_layers().size(), 2 * a->linear_layers().size());
  const at::Tensor x = RandomStreams(3).normal(Purpose::kProbe, 0, 0, 0, 3, {2, 8, 8});
  const at::Tensor t = at::tensor({0.2F, 0.5F, 0.9F});
  const Condition c{at::tensor({0, 2, 3}, at::kLong)};
  const at::Tensor v = both.velocity(x, t, c);
  EXPECT_TRUE(at::allclose(v.narrow(1, 0, 1), a->velocity(x.narrow(1, 0, 1), t, c), 1e-5, 1e-6));
  EXPECT_TRUE(at::allclose(v.narrow(1, 1, 1), b->velocity(x.narrow(1, 1, 1), t, c), 1e-5, 1e-6));
  // The Jacobian is block diagonal.
  const at::Tensor pull = at::cat({at::ones({3, 1, 8, 8}), at::zeros({3, 1, 8, 8})}, 1);
  EXPECT_EQ(both.vjp(x, t, c, pull).input_gradient.narrow(1, 1, 1).abs().max().item<double>(), 0);
  EXPECT_GT(both.vjp(x, t, c, pull).input_gradient.narrow(1, 0, 1).abs().max().item<double>(), 0);
  for (const auto& [how, wanted] : {std::pair{"mean", 0.5}, {"sum", 1.0}, {"max", 1.0}}) {
    EXPECT_EQ(aggregated(pull, 2, how).max().item<double>(), wanted);
  }
  test::expect_error(ErrorKind::kConfig, "makes [2]", [&] {
    ProductModel({a, std::make_shared<MixtureModel>(mixture_from_args({{"means", "0 0"}}),
                                                    make_path("linear"))});
  });
}

TEST(models_product_model, FilesPoliciesAndErrors) {
  const test::TempDir dir;
  for (const std::uint64_t seed : {1U, 2U}) {
    const auto model = sit(seed);
    save_velocity_model(dir / cat("m", seed, ".safetensors"), *model, model->parameters(),
                        {{"tiltflow.path", "linear"}});
  }
  FlowModelConfig config;
  config.agents = {(dir / "m1.safetensors").string(), (dir / "m2.safetensors").string()};
  config.aggregate = "sum";
  config.args = {{"num_heads", "2"}};
  const FlowModel flow = load_flow_model(config);
  const at::Tensor x = RandomStreams(3).normal(Purpose::kProbe, 0, 0, 0, 3, {2, 8, 8});
  const at::Tensor t = at::tensor({0.2F, 0.5F, 0.9F});
  for (const char* kind : {"full", "lora", "control"}) {
    PolicyConfig policy;
    policy.kind = kind;
    policy.control.width = 8;
    const Policy made = make_policy(flow, policy, 3);
    {
      const at::NoGradGuard no_grad;
      for (const at::Tensor& w : made.trainable.tensors()) at::Tensor(w).add_(0.01);
    }
    const auto tuned = merged_model(flow, policy, made.trainable);
    save_velocity_model(dir / "tuned.safetensors", *tuned, tuned->parameters(), flow.metadata());
    FlowModelConfig file;
    file.file = (dir / "tuned.safetensors").string();
    const FlowModel back = load_flow_model(file);
    EXPECT_EQ(back.aggregate, "sum");
    EXPECT_EQ(agents_of(back.model->spec()), 2) << kind;
    EXPECT_LT(test::relative_error(back.model->velocity(x, t, {}), made.tuned->velocity(x, t, {})),
              1e-4)
        << kind;
  }
  config.file = config.agents[0];
  test::expect_error(ErrorKind::kConfig, "give one of them", [&] { load_flow_model(config); });
  write_safetensors(
      dir / "bad.safetensors", {},
      {{"tiltflow.family", "product"}, {"tiltflow.args", "{\"agents\":\"99999999999\"}"}});
  test::expect_error(ErrorKind::kBadFile, "a product of",
                     [&] { load_velocity_model(dir / "bad.safetensors"); });
}

// Two Gaussians whose mean is rewarded: p* couples them, with the covariance of the joint law in
// closed form.
TEST(models_product_model, TwoGaussiansUnderOneControl) {
  const test::TempDir dir;
  const GaussianMixture one =
      isotropic_mixture(at::ones({1}, at::kDouble), at::full({1, 1}, 0.3, at::kDouble), 0.8);
  for (const char* name : {"a", "b"}) {
    const MixtureModel model(one, make_path("linear"));
    save_velocity_model(dir / cat(name, ".safetensors"), model, model.parameters(),
                        {{"tiltflow.path", "linear"}});
  }
  FinetuneConfig c;
  c.model.agents = {(dir / "a.safetensors").string(), (dir / "b.safetensors").string()};
  RewardTerm reward;
  reward.name = "quadratic";
  reward.center = {1.0};
  reward.curvature = 6;
  c.reward = {reward};
  c.policy.kind = "control";
  c.policy.control.kind = "mlp";
  c.policy.control.width = 32;
  c.policy.control.depth = 2;
  c.method.adjoint = adjoint_matching_preset("exact", 25);
  c.sampler.steps = 25;
  c.batch = 64;
  c.micro_batch = 32;
  c.evaluation.every = 0;
  c.evaluation.base_samples = 64;
  c.train.steps = 150;
  c.train.optimizer.learning_rate = 5e-3;
  c.train.optimizer.final_fraction = 0.02;
  c.train.average_decay = 0.95;
  c.train.checkpoint_every = 150;
  const FinetuneSetup setup = set_up(c);
  {
    tiltflow::Run run(dir / "run", "x", false);
    finetune(setup, run);
  }
  FlowModelConfig file;
  file.file = (dir / "run/model.safetensors").string();
  DrawOptions options;
  options.n = 4000;
  const at::Tensor x = draw(*load_flow_model(file).model, setup.config.sampler, *setup.flow.path,
                            {2}, RandomStreams(7), no_labels(), options)
                           .x.to(at::kDouble);
  // Precision 1/.64 I + 6/4 [1 1; 1 1], pull 6/2 (1 - mean) along (1, 1).
  const GaussianMixture joint =
      isotropic_mixture(at::ones({1}, at::kDouble), at::full({1, 2}, 0.3, at::kDouble), 0.8);
  const TiltedMixture target =
      tilt(joint, quadratic_form(at::full({2, 2}, 1.5, at::kDouble), at::ones({2}, at::kDouble)));
  const at::Tensor mean_found = x.mean(0);
  const at::Tensor centred = x - mean_found;
  const at::Tensor covariance_found = at::matmul(centred.t(), centred) / 4000;
  EXPECT_LT(target.law.covariances[0][0][1].item<double>(), -0.1);
  EXPECT_LT((mean_found - target.law.means[0]).abs().max().item<double>(), 0.07) << mean_found;
  EXPECT_LT((covariance_found - target.law.covariances[0]).abs().max().item<double>(), 0.07)
      << covariance_found << target.law.covariances[0];
}

}  // namespace tiltflow
