#include "tests/fake_device.h"
#include "tests/same_bytes.h"
#include "tests/support.h"
#include "tests/train/small_run.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/models/autoencoder/autoencoder.h"
#include "tiltflow/models/classifier/classifier.h"
#include "tiltflow/models/clip/vision.h"
#include "tiltflow/models/generator/generator.h"
#include "tiltflow/models/model_file.h"
#include "tiltflow/models/sit/sit.h"
#include "tiltflow/tensor/device.h"
#include "tiltflow/train/finetuning.h"
#include "tiltflow/train/gan_training.h"
#include "tiltflow/train/pretraining.h"

namespace tiltflow {
namespace {

// The same work on both; the fake device must have done some of it.
std::pair<at::Tensor, at::Tensor> on_both(const std::function<at::Tensor()>& work) {
  const test::BackToCpu restore;
  set_compute_device("cpu");
  const at::Tensor expected = work();
  set_compute_device(test::fake_device());
  const std::int64_t before = test::fake_device_calls();
  const at::Tensor found = work();
  EXPECT_GT(test::fake_device_calls(), before);
  EXPECT_TRUE(found.device().is_cpu());
  return {found, expected};
}

// Up to rounding: an operator may be composed differently elsewhere.
void expect_same(const std::pair<at::Tensor, at::Tensor>& both) {
  EXPECT_LT(test::relative_error(both.first, both.second), 1e-5);
}

// The value of a network and its gradient in the input, side by side.
at::Tensor with_gradient(const at::Tensor& input,
                         const std::function<at::Tensor(const at::Tensor&)>& network) {
  const at::AutoGradMode grad(true);
  const at::Tensor x = input.detach().clone().set_requires_grad(true);
  const at::Tensor y = network(x);
  return at::cat(
      {y.detach().flatten(), torch::autograd::grad({y.square().sum()}, {x})[0].flatten()});
}

at::Tensor noise(at::IntArrayRef shape) {
  return RandomStreams(3).normal(Purpose::kProbe, 0, 0, 0, shape[0], shape.slice(1));
}

// Largest difference of two model files, relative to the largest weight.
double difference(const std::filesystem::path& a, const std::filesystem::path& b) {
  const ParameterSet x = read_safetensors(a).tensors;
  const ParameterSet y = read_safetensors(b).tensors;
  double worst = 0;
  double largest = 0;
  for (const auto& [name, tensor] : x) {
    worst = std::max(worst, (tensor - y.at(name)).abs().max().item<double>());
    largest = std::max(largest, tensor.abs().max().item<double>());
  }
  return worst / largest;
}

}  // namespace

TEST(train_trainer_device, UnknownOnesAreRefused) {
  std::vector<const char*> names{"gpu", "cuda:99", "meta", ""};
  if (!at::hasCUDA()) names.push_back("cuda");
  for (const char* name : names) {
    test::expect_error(ErrorKind::kConfig, "is not usable", [&] { set_compute_device(name); });
  }
  EXPECT_TRUE(compute_device().is_cpu());
}

// What the test device is for: an operator that mixes devices does not work.
TEST(train_trainer_device, MixingThrows) {
  const test::BackToCpu restore;
  set_compute_device(test::fake_device());
  const at::Tensor there = to_compute_device(at::ones({3}));
  EXPECT_THROW(there + at::ones({3}), c10::Error);
  EXPECT_THROW(at::ones({3}).add(there), c10::Error);
  EXPECT_EQ((there + there).sum().item<double>(), 6);
  EXPECT_EQ(on_device_of(at::ones({1}), there * 2)[2].item<double>(), 2);
}

// Every policy, with a network as reward: the weights of the CPU.
TEST(train_trainer_device, FineTuningGivesTheSameWeights) {
  const test::TempDir dir;
  for (const char* policy : {"full", "lora", "control"}) {
    FinetuneConfig config = test::small_run(dir);
    config.policy.kind = policy;
    config.policy.control.kind = "conv";
    config.policy.control.width = 8;
    config.compute.activation_checkpointing = std::string(policy) == "lora";
    const std::filesystem::path here = dir / cat(policy, "-cpu");
    const std::filesystem::path there = dir / cat(policy, "-fake");
    std::int64_t before = test::fake_device_calls();
    test::run_on("cpu", config, here);
    EXPECT_EQ(test::fake_device_calls(), before);
    test::run_on(test::fake_device(), config, there);
    EXPECT_GT(test::fake_device_calls(), before + 1000);
    EXPECT_LT(difference(there / "model.safetensors", here / "model.safetensors"), 1e-5) << policy;
    if (config.policy.kind == "full") {  // training moved them
      EXPECT_GT(difference(dir / "base.safetensors", there / "model.safetensors"), 1e-4);
    }
  }
}

TEST(train_trainer_device, MethodsOfEveryKindAndResume) {
  const test::TempDir dir;
  for (const char* method : {"socm", "flow-grpo", "draft"}) {
    FinetuneConfig config = test::small_run(dir);
    config.method.name = method;
    config.batch = 8;
    config.micro_batch = 8;
    const std::filesystem::path here = dir / cat(method, "-cpu");
    const std::filesystem::path there = dir / cat(method, "-fake");
    const std::filesystem::path resumed = dir / cat(method, "-resumed");
    test::run_on("cpu", config, here);
    const std::string whole = test::run_on(test::fake_device(), config, there);
    EXPECT_LT(difference(there / "model.safetensors", here / "model.safetensors"), 1e-5) << method;
    std::filesystem::copy(there, resumed, std::filesystem::copy_options::recursive);
    std::filesystem::remove_all(resumed / "checkpoints/step-000004");
    std::filesystem::remove(resumed / "model.safetensors");
    EXPECT_TRUE(test::same_bytes(test::run_on(test::fake_device(), config, resumed, true), whole))
        << method;
  }
}

TEST(train_trainer_device, PretrainingGivesTheSameWeights) {
  ImageDataset data;
  data.labels = at::remainder(at::arange(32, at::kLong), 2);
  data.images = (noise({32, 1, 8, 8}).sigmoid() * 255).to(at::kByte);
  data.class_names = {"a", "b"};
  TrainConfig config;
  config.steps = 4;
  const auto trained = [&](const std::function<std::unique_ptr<Objective>()>& make) {
    return on_both([&] {
      const test::TempDir dir;
      tiltflow::Run run(dir / "r", "", false);
      const auto objective = make();
      const TrainResult result = train(config, *objective, run, {});
      std::vector<at::Tensor> flat;
      for (const auto& [name, tensor] : result.average) {
        flat.push_back(tensor.detach().cpu().flatten());
      }
      return at::cat(flat);
    });
  };
  expect_same(trained([&] {
    auto model = create_velocity_model({"sit",
                                        {{"input_size", "8"},
                                         {"patch_size", "4"},
                                         {"in_channels", "1"},
                                         {"hidden_size", "16"},
                                         {"depth", "1"},
                                         {"num_heads", "2"},
                                         {"num_classes", "2"},
                                         {"learn_sigma", "false"}}},
                                       1, {});
    return std::make_unique<FlowMatchingObjective>(std::move(model), make_path("linear"), data,
                                                   FlowMatchingOptions{16, 8, 0.1, "uniform"}, 1);
  }));
  expect_same(trained([&] {
    ClassifierConfig judge;
    judge.input_size = 8;
    judge.width = 4;
    judge.features = 6;
    judge.num_classes = 2;
    return std::make_unique<ClassificationObjective>(judge, data,
                                                     ClassificationOptions{16, 8, 0.1, 1, 0.1}, 1);
  }));
  expect_same(trained([&] {
    GanConfig gan;
    gan.base_channels = 4;
    gan.d_base_channels = 4;
    gan.feat_dim = 8;
    gan.z_dim = 6;
    gan.embed_dim = 3;
    gan.image_size = 8;
    gan.num_classes = 2;
    gan.spectral_norm = true;
    return std::make_unique<GanObjective>(gan, data, GanTrainingOptions{16, 8, 1}, 1);
  }));
}

TEST(train_trainer_device, NetworksAnswerOnTheCpu) {
  const at::Tensor labels = at::arange(4, at::kLong).remainder(2);
  expect_same(on_both([&] {
    const auto loaded =
        load_velocity_model(test::golden("sit_a_ema.safetensors"), {{"num_heads", "4"}});
    std::vector<std::int64_t> shape = loaded.model->sample_shape();
    shape.insert(shape.begin(), 4);
    const at::Tensor x = noise(shape);
    const Vjp with = loaded.model->vjp(x, time_tensor(0.3, x), {labels}, x);
    const Vjp without = loaded.model->vjp(x, time_tensor(0.3, x), {}, x);
    return at::stack(
        {with.velocity, with.input_gradient, without.velocity, without.input_gradient});
  }));
  expect_same(on_both([&] {
    const auto model =
        create_velocity_model({"mlp", {{"dimension", "3"}, {"hidden_size", "8"}}}, 5);
    return with_gradient(noise({4, 3}), [&](const at::Tensor& x) {
      return x + model->velocity(x, time_tensor(0.3, x), {});
    });
  }));
  expect_same(on_both([&] {
    const auto generator = load_generator(test::golden_onestep("mnist_generator.safetensors"));
    return with_gradient(noise({4, noise_size(*generator)}),
                         [&](const at::Tensor& z) { return generate_rows(*generator, z, labels); });
  }));
  expect_same(on_both([&] {
    RewardTerm term;
    term.name = "torchscript";
    term.file = (test::source_dir() / "tests/golden/torch/reward_module.pt").string();
    const auto reward = make_reward(term);
    return with_gradient(noise({4, 3, 8, 8}).sigmoid(),
                         [&](const at::Tensor& x) { return reward->score(x, {labels}); });
  }));
  const std::filesystem::path golden = test::source_dir() / "tests/golden";
  expect_same(on_both([&] {
    const auto vae = load_autoencoder(golden / "diffusers/vae16");
    const at::Tensor images = noise({2, 3, 16, 16}).clamp(-1, 1);
    const Moments m = vae->encode(images);
    return at::cat({m.mean.flatten(), m.logvar.flatten(),
                    with_gradient(m.mean, [&](const at::Tensor& z) { return vae->decode(z); })});
  }));
  expect_same(on_both([&] {
    const auto clip = load_clip_vision(golden / "clip/vision_gelu");
    return with_gradient(noise({2, 3, 20, 20}).sigmoid(),
                         [&](const at::Tensor& x) { return clip->embed_images(x); });
  }));
}

}  // namespace tiltflow
