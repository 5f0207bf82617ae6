// A model that is written here: an affine velocity, whose tables over time are the weights.
//   own_model OUT
// It starts as the exact flow of a standard normal law in two dimensions. The reward -k/2 |x - c|^2
// tilts that law to a normal one with mean k c / (1 + k) and variance 1 / (1 + k).
#include <ATen/ATen.h>

#include <iostream>

#include "tiltflow/tiltflow.h"

using namespace tiltflow;

namespace {

constexpr std::int64_t kTimes = 26;  // rows of the tables: one for every step of the sampler

// v(x, t) = slope(t) x + shift(t)
class AffineFlow final : public VelocityModel {
 public:
  explicit AffineFlow(ParameterSet weights) : weights_(std::move(weights)) {}

  at::Tensor velocity(const at::Tensor& x, const at::Tensor& t, const Condition&) const override {
    const at::Tensor row = (t * (kTimes - 1)).round().to(at::kLong);  // [N]
    return weights_.at("slope").index_select(0, row) * x +
           weights_.at("shift").index_select(0, row);
  }
  const ModelSpec& spec() const override { return spec_; }
  const ParameterSet& parameters() const override { return weights_; }
  std::vector<std::int64_t> sample_shape() const override { return {2}; }
  std::int64_t classes() const override { return 0; }
  std::vector<std::string> linear_layers() const override { return {}; }  // none for adapters
  bool is_buffer(const std::string&) const override { return false; }
  std::unique_ptr<VelocityModel> rebind(ParameterSet weights, AdapterSet) const override {
    return std::make_unique<AffineFlow>(std::move(weights));
  }

 private:
  ModelSpec spec_{"affine", {}};
  ParameterSet weights_;
};

std::unique_ptr<VelocityModel> standard_normal() {
  const at::Tensor t = at::linspace(0, 1, kTimes).unsqueeze(1);
  ParameterSet weights;
  weights.add("slope", (2 * t - 1) / (t.square() + (1 - t).square()));
  weights.add("shift", at::zeros({kTimes, 2}));
  return std::make_unique<AffineFlow>(std::move(weights));
}

void print(const std::string& whose, const VelocityField& field, const FinetuneSetup& setup) {
  DrawOptions options;
  options.n = 4096;
  const Draws draws =
      draw(field, setup.config.sampler, *setup.flow.path, {2}, setup.streams, no_labels(), options);
  const at::Tensor x = draws.x.select(1, 0);
  std::cout << whose << ": mean " << x.mean().item<double>() << ", variance "
            << x.var().item<double>() << '\n';
}

}  // namespace

int main(int argc, char** argv) try {
  auto config = load_config<FinetuneConfig>(
      "", {"reward=[{name='quadratic', center=[2, 0], curvature=1}]", "sampler.steps=25",
           "batch=64", "micro_batch=32", "train.steps=200", "train.learning_rate=0.05",
           "train.schedule=cosine", "evaluation.every=0"});
  config.model.own = [](const ModelRuntime&) { return standard_normal(); };
  const FinetuneSetup setup = set_up(config);
  Run run(argc > 1 ? argv[1] : "own-model", "", false);
  const TrainResult result = finetune(setup, run);
  print("base", *setup.flow.model, setup);
  print("tuned", *setup.flow.model->rebind(result.average, {}), setup);
  std::cout << "tilted law: mean 1, variance 0.5\n";
} catch (const Error& error) {
  std::cerr << error.what() << '\n';
  return exit_code(error.kind());
}
