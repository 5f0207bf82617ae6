// A reward that is written here: digits that equal their own mirror image.
//   own_reward MODEL.safetensors OUT
#include <ATen/ATen.h>

#include <iostream>

#include "tiltflow/tiltflow.h"

using namespace tiltflow;

namespace {

// Minus the mean square difference between an image and its mirror image.
class Symmetry final : public Reward {
 public:
  const RewardInfo& info() const override { return info_; }
  at::Tensor score(const at::Tensor& images, const RewardCondition&) const override {
    const at::Tensor difference = images - images.flip({3});  // [N, C, H, W]
    return -difference.square().flatten(1).mean(1);           // [N]
  }

 private:
  RewardInfo info_{"symmetry", /*has_gradient=*/true, ""};
};

void print(const std::string& whose, const Estimate& score) {
  std::cout << whose << ": reward " << score.value << " +- " << score.se << '\n';
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 3) {
    std::cerr << "usage: own_reward MODEL OUT\n";
    return 2;
  }
  auto config = load_config<FinetuneConfig>(
      "", {std::string("model.file=") + argv[1], "policy.kind=lora", "sampler.steps=6", "batch=16",
           "micro_batch=8", "train.steps=8", "train.learning_rate=0.001",
           "evaluation={every=0, base_samples=16}"});
  config.reward = {own_reward(std::make_shared<Symmetry>(), /*scale=*/100)};
  const FinetuneSetup setup = set_up(config);
  Run run(argv[2], "", false);
  const TrainResult result = finetune(setup, run);

  const auto tuned = merged_model(setup.flow, setup.config.policy, result.average);
  DrawOptions options;
  options.n = 32;
  const auto reward_of = [&](const VelocityField& field) {
    const Draws draws = draw(field, setup.config.sampler, *setup.flow.path,
                             setup.flow.model->sample_shape(), setup.streams, no_labels(), options);
    return mean_estimate(setup.reward->score(draws.x, draws.labels));
  };
  print("base", reward_of(*setup.flow.model));
  print("tuned", reward_of(*tuned));
  std::cout << "wrote " << argv[2] << "/model.safetensors\n";
} catch (const Error& error) {
  std::cerr << error.what() << '\n';
  return exit_code(error.kind());
}
