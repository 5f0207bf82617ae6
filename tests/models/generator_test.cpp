#include "tests/support.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/models/generator/gan.h"

namespace tiltflow {
namespace {

at::Tensor leaf(const at::Tensor& x) { return x.detach().clone().set_requires_grad(true); }
at::Tensor gradient(const at::Tensor& of, const at::Tensor& in) {
  return torch::autograd::grad({of}, {in})[0];
}

// fp32 against fp32 of another build: 1e-5 of the largest entry.
constexpr double kTolerance = 1e-5;

class models_generator : public ::testing::TestWithParam<std::string> {
 protected:
  std::unique_ptr<Generator> generator() const {
    return load_generator(test::golden_onestep(GetParam() + "_generator.safetensors"));
  }
  ParameterSet io() const {
    return read_safetensors(test::golden_onestep(GetParam() + "_io.safetensors")).tensors;
  }
};

TEST_P(models_generator, ImagesAndInputGradientsAreThoseOfTheReference) {
  const auto g = generator();
  const ParameterSet t = io();
  const at::Tensor z = leaf(t.at("z"));
  const at::Tensor images = g->generate(z, t.at("y"));
  EXPECT_LT(test::relative_error(images.detach(), t.at("eval.images")), kTolerance);
  EXPECT_LT(test::relative_error(gradient((images * t.at("cot")).sum(), z), t.at("eval.vjp_z")),
            kTolerance);
  EXPECT_LT(test::relative_error((images.detach() + 1) / 2, t.at("eval.grid_images")), kTolerance);
}

TEST_P(models_generator, TrainingModeUsesAndUpdatesBatchStatistics) {
  auto g = generator();
  const ParameterSet t = io(), weights = [&] {
    ParameterSet out;  // gradients for all but the statistics
    for (const auto& [name, tensor] : g->parameters()) {
      out.add(name, g->is_buffer(name) ? tensor : leaf(tensor));
    }
    return out;
  }();
  g = g->rebind(weights);
  const at::Tensor z = leaf(t.at("z"));
  const Generator::TrainingOutput out = g->generate_in_training(z, t.at("y"));
  EXPECT_LT(test::relative_error(out.samples.detach(), t.at("train.images")), kTolerance);
  const at::Tensor value = (out.samples * t.at("cot")).sum();
  EXPECT_LT(
      test::relative_error(torch::autograd::grad({value}, {z}, {}, true)[0], t.at("train.vjp_z")),
      2 * kTolerance);
  int gradients = 0;
  int buffers = 0;
  for (const auto& [name, tensor] : t) {
    if (starts_with(name, "train.pgrad.")) {
      const std::string key = name.substr(12);
      if (key.find(".bias") != std::string::npos && key != "net.3.bias" && key != "net.1.bias") {
        continue;  // biases before a batch norm: rounding noise
      }
      if (tensor.abs().max().item<double>() < 1e-3) continue;
      EXPECT_LT(test::relative_error(torch::autograd::grad({value}, {weights.at(key)}, {}, true)[0],
                                     tensor),
                1e-4)
          << name;
      ++gradients;
    } else if (starts_with(name, "train.after.")) {
      EXPECT_LT(test::relative_error(out.buffers.at(name.substr(12)), tensor), kTolerance) << name;
      ++buffers;
    }
  }
  EXPECT_GT(gradients, 1);
  EXPECT_GT(buffers, 6);
  // The stored statistics are untouched until somebody takes the new ones, and they matter.
  EXPECT_TRUE(at::equal(g->parameters().at("fc.1.running_mean"),
                        generator()->parameters().at("fc.1.running_mean")));
  EXPECT_GT(test::relative_error(g->generate(t.at("z"), t.at("y")).detach(), t.at("train.images")),
            0.01);
}

TEST_P(models_generator, DiscriminatorScoresAndHingeLosses) {
  const Discriminator d =
      load_discriminator(test::golden_onestep(GetParam() + "_discriminator.safetensors"));
  const ParameterSet t = io();
  const at::Tensor real = leaf(t.at("real"));
  const at::Tensor scores = d.score(real, t.at("y"));
  EXPECT_LT(test::relative_error(scores.detach(), t.at("d.real_scores")), kTolerance);
  EXPECT_LT(test::relative_error(gradient(scores.sum(), real), t.at("d.grad_real")), kTolerance);
  const auto g = generator();
  const at::Tensor z = leaf(t.at("z"));
  const at::Tensor fake = d.score(g->generate(z, t.at("y")), t.at("y"));
  EXPECT_LT(test::relative_error(fake.detach(), t.at("d.fake_scores")), kTolerance);
  EXPECT_LT(test::relative_error(gradient(fake.sum(), z), t.at("d.grad_z_of_fake_scores")),
            kTolerance);
  const HingeLosses losses = hinge_losses(t.at("d.real_scores"), t.at("d.fake_scores"));
  EXPECT_NEAR(losses.discriminator.item<double>(), t.at("hinge.d_loss").item<double>(), 1e-6);
  EXPECT_NEAR(losses.generator.item<double>(), t.at("hinge.g_loss").item<double>(), 1e-6);
}

TEST_P(models_generator, TheTrainersCheckpointHoldsBothNetworks) {
  const std::filesystem::path file = test::golden_onestep(GetParam() + "_gan.pt");
  const auto from_trainer = load_generator(file);
  const auto plain = generator();
  const ParameterSet t = io();
  EXPECT_TRUE(at::equal(from_trainer->generate(t.at("z"), t.at("y")),
                        plain->generate(t.at("z"), t.at("y"))));
  EXPECT_LT(
      test::relative_error(load_discriminator(file, "discriminator").score(t.at("real"), t.at("y")),
                           t.at("d.real_scores")),
      kTolerance);
}

TEST_P(models_generator, FilesRoundTrip) {
  const test::TempDir dir;
  const auto g = generator();
  save_generator(dir / "g.safetensors", *g, g->parameters());
  const ParameterSet t = io();
  EXPECT_TRUE(at::equal(load_generator(dir / "g.safetensors")->generate(t.at("z"), t.at("y")),
                        g->generate(t.at("z"), t.at("y"))));
}

// No prefix: the suites of a folder are found by the beginning of their names.
INSTANTIATE_TEST_SUITE_P(, models_generator, ::testing::Values("mnist", "cifar"));

TEST(models_generator_sizes, PublishedParameterCounts) {
  const auto count = [](const ParameterSet& p) {
    std::int64_t n = 0;
    for (const auto& [name, t] : p) {
      n += name.find("running_") == std::string::npos &&
                   name.find("num_batches") == std::string::npos
               ? t.numel()
               : 0;
    }
    return n;
  };
  const RandomStreams streams(0);
  const GanConfig mnist = gan_config_from_args({{"size", "mnist"}});
  const GanConfig cifar = gan_config_from_args({{"size", "cifar10"}});
  EXPECT_EQ(count(init_gan_generator(mnist, streams)), 1898689);
  EXPECT_EQ(count(init_discriminator(mnist, streams)), 1740993);
  EXPECT_EQ(count(init_gan_generator(cifar, streams)), 4353667);
  EXPECT_EQ(count(init_discriminator(cifar, streams)), 1710529);
}

TEST(models_generator_sizes, SpectralNormBoundsEveryWeight) {
  GanConfig c = gan_config_from_args({{"base_channels", "4"},
                                      {"d_base_channels", "4"},
                                      {"feat_dim", "8"},
                                      {"spectral_norm", "true"}});
  const Discriminator d(c, init_discriminator(c, RandomStreams(1)));
  for (int i = 0; i < 200; ++i) d.update_spectral_norm();
  const at::Tensor x = RandomStreams(2).normal(Purpose::kProbe, 0, 0, 0, 3, {1, 28, 28});
  const at::Tensor y = at::tensor({1, 2, 3}, at::kLong);
  ParameterSet divided;
  GanConfig plain = c;
  plain.spectral_norm = false;
  for (const auto& [name, w] : d.parameters()) {
    if (d.is_buffer(name)) continue;
    const bool normalized = d.parameters().contains(name + "_u");
    divided.add(name, normalized ? w / at::linalg_matrix_norm(w.flatten(1), 2) : w);
  }
  EXPECT_LT(test::relative_error(d.score(x, y), Discriminator(plain, divided).score(x, y)), 1e-4);
  EXPECT_GT(test::relative_error(d.score(x, y),
                                 Discriminator(plain, clone(divided, false)).score(x * 2, y)),
            1e-3);
}

TEST(models_generator_bad, FilesAndArgumentsAreRefused) {
  test::expect_error(ErrorKind::kConfig, "did you mean 'z_dim'",
                     [] { gan_config_from_args({{"z_dm", "3"}}); });
  test::expect_error(ErrorKind::kConfig, "no multiple of 2^2",
                     [] { gan_config_from_args({{"image_size", "30"}}); });
  test::expect_error(ErrorKind::kConfig, "labels are required", [] {
    load_generator(test::golden_onestep("mnist_generator.safetensors"))
        ->generate(at::zeros({1, 16}), {});
  });
  test::expect_error(ErrorKind::kBadFile, "no one-step generator",
                     [] { load_generator(test::golden_onestep("mnist_io.safetensors")); });
  test::expect_error(ErrorKind::kBadFile, "no discriminator", [] {
    load_discriminator(test::golden_onestep("mnist_generator.safetensors"));
  });
}

// The public pre-trained generators (older PyTorch pickles, one of them saved on a GPU), where the
// checkout has them.
TEST(models_generator_plain, PublicGeneratorsLoad) {
  const std::filesystem::path folder = test::source_dir() / "../shared/data/toy-generators";
  if (!std::filesystem::exists(folder)) GTEST_SKIP() << "no public generators beside this checkout";
  for (const auto& [file, size] : {std::pair{"mnist_gan_mlp_weights_G--300.ckpt", 64},
                                   {"mnist_vae_weights_vae_epoch_25.pth", 20}}) {
    const auto g = load_generator(folder / file);
    EXPECT_EQ(noise_size(*g), size);
    const at::Tensor x =
        g->generate(RandomStreams(1).normal(Purpose::kPrior, 0, 0, 0, 200, {size}), {});
    EXPECT_EQ(x.sizes(), (at::IntArrayRef{200, 1, 28, 28}));
    EXPECT_LE(x.abs().max().item<double>(), 1);
    EXPECT_NEAR(x.mean().item<double>(), -0.75, 0.08) << "ink of digits";
  }
}

TEST(models_generator_plain, MlpAndVaeDecoders) {
  const RandomStreams s(3);
  ParameterSet mlp;
  mlp.add("0.weight", s.normal(Purpose::kInit, 0, 0, 0, 6, {4}));
  mlp.add("0.bias", at::ones({6}));
  mlp.add("2.weight", s.normal(Purpose::kInit, 1, 0, 0, 12, {6}));
  mlp.add("2.bias", at::zeros({12}));
  const at::Tensor z = s.normal(Purpose::kPrior, 0, 0, 0, 5, {4});
  const auto g = make_mlp_generator(mlp, {});
  EXPECT_EQ(g->sample_shape(), (std::vector<std::int64_t>{3, 2, 2}));
  const at::Tensor by_hand =
      at::tanh(at::relu(z.matmul(mlp.at("0.weight").t()) + 1).matmul(mlp.at("2.weight").t()));
  EXPECT_LT(test::relative_error(g->generate(z, {}).flatten(1), by_hand), 1e-6);
  ParameterSet vae;
  vae.add("fc3.weight", mlp.at("0.weight"));
  vae.add("fc3.bias", mlp.at("0.bias"));
  vae.add("fc4.weight", mlp.at("2.weight"));
  vae.add("fc4.bias", mlp.at("2.bias"));
  vae.add("fc21.weight", at::zeros({1, 1}));
  const auto v = make_vae_generator(vae, {{"channels", "3"}});
  EXPECT_LT(
      test::relative_error(v->generate(z, {}).flatten(1), at::sigmoid(at::atanh(by_hand)) * 2 - 1),
      1e-3);
  EXPECT_EQ(trainable_of(*v).size(), 4U);
  test::expect_error(ErrorKind::kBadFile, "no square picture",
                     [&] { make_mlp_generator(mlp, {{"channels", "2"}}); });
}

}  // namespace
}  // namespace tiltflow
