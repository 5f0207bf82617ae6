// Aligns a model with a reward that is written here: digits whose ink lies in the left half.
//   embed CONFIG.toml OUT      e.g. embed recipes/sanity.toml runs/embed
// The configuration says everything else: model, sampler, policy, steps. Its own reward is
// replaced.
#include <ATen/ATen.h>

#include <exception>
#include <iostream>
#include <memory>

#include "tiltflow/tiltflow.h"

namespace {

// Mean of the left half of an image less the mean of its right half.
class LeftInk final : public tiltflow::Reward {
 public:
  const tiltflow::RewardInfo& info() const override { return info_; }

  at::Tensor score(const at::Tensor& images, const tiltflow::RewardCondition&) const override {
    const std::int64_t half = images.size(3) / 2;
    const at::Tensor left = images.narrow(3, 0, half);  // [N, C, H, W / 2]
    const at::Tensor right = images.narrow(3, images.size(3) - half, half);
    return left.flatten(1).mean(1) - right.flatten(1).mean(1);  // [N]
  }

 private:
  tiltflow::RewardInfo info_{"left-ink", true, ""};
};

int align(const std::string& file, const std::string& out) {
  auto config = tiltflow::load_config<tiltflow::FinetuneConfig>(file, {});
  config.reward = {tiltflow::own_reward(std::make_shared<LeftInk>(), /*scale=*/20)};
  const tiltflow::FinetuneSetup setup = tiltflow::set_up(config);
  tiltflow::Run run(out, "", false);
  tiltflow::finetune(setup, run);
  std::cout << "wrote " << out << "/model.safetensors\n";
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: embed CONFIG.toml OUT\n";
    return 2;
  }
  try {
    return align(argv[1], argv[2]);
  } catch (const tiltflow::Error& error) {
    std::cerr << error.what() << '\n';
    return tiltflow::exit_code(error.kind());
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
