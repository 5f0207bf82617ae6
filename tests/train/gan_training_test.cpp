#include "tiltflow/train/gan_training.h"
#include "tests/support.h"
#include "tiltflow/base/file.h"
#include "tiltflow/models/generator/gan.h"

namespace tiltflow {

TEST(train_gan_training, BothNetworksLearnInTurn) {
  const RandomStreams streams(5);
  GanConfig gan;
  gan.base_channels = 4;
  gan.d_base_channels = 4;
  gan.feat_dim = 8;
  gan.z_dim = 6;
  gan.embed_dim = 3;
  gan.image_size = 8;
  gan.num_classes = 2;
  for (const bool spectral : {false, true}) {
    gan.spectral_norm = spectral;
    ImageDataset data;
    data.labels = at::remainder(at::arange(64, at::kLong), 2);
    data.images = (data.labels.view({64, 1, 1, 1}) * 200 +
                   streams.integers(Purpose::kData, 0, 0, 64, 40).view({64, 1, 1, 1}))
                      .expand({64, 1, 8, 8})
                      .to(at::kByte)
                      .contiguous();
    data.class_names = {"dark", "bright"};
    GanObjective objective(gan, data, {16, 8, 2}, 1);
    const auto difference = [&] {  // brightness of class 1 less that of class 0
      const at::NoGradGuard no_grad;
      const at::Tensor z = streams.normal(Purpose::kExact, 0, 0, 0, 32, {6});
      return (objective.generator().generate(z, at::ones({32}, at::kLong)).mean() -
              objective.generator().generate(z, at::zeros({32}, at::kLong)).mean())
          .item<double>();
    };
    TrainConfig train_config;
    train_config.steps = 450;
    train_config.optimizer.learning_rate = 2e-3;
    train_config.optimizer.beta1 = 0.5;
    train_config.optimizer.gradient_clip = 0;
    train_config.optimizer.schedule = "constant";
    train_config.checkpoint_every = 300;
    const test::TempDir dir;
    tiltflow::Run run(dir / "run", "x = 1\n", false);
    train(train_config, objective, run, {});
    EXPECT_GT(difference(), 0.5) << "spectral norm " << spectral;
    EXPECT_EQ(
        objective.generator().parameters().at("net.1.num_batches_tracked").item<std::int64_t>(),
        450);
    EXPECT_EQ(objective.begin_step(0), 2);
    EXPECT_TRUE(objective.trains("discriminator.fc.weight") &&
                !objective.trains("generator.fc.0.weight"));
    objective.begin_step(2);
    EXPECT_FALSE(objective.trains("discriminator.fc.weight"));
    EXPECT_TRUE(objective.trains("generator.fc.0.weight"));
  }
}

}  // namespace tiltflow
