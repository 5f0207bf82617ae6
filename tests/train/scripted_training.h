// An objective whose losses and metrics are written down beforehand.
#pragma once

#include "tests/support.h"
#include "tiltflow/io/json_lines.h"
#include "tiltflow/train/trainer.h"

namespace tiltflow::test {

// One weight whose loss is what the test says, with a gradient of one.
class ScriptedObjective final : public Objective {
 public:
  explicit ScriptedObjective(std::function<double(std::int64_t)> loss, std::int64_t between = 1)
      : loss_(std::move(loss)), between_(between) {
    trainable_.add("w", at::ones({1}).set_requires_grad(true));
  }
  const ParameterSet& trainable() const override { return trainable_; }
  std::int64_t begin_step(std::int64_t step) override { return step_ = step, 1; }
  LossReport micro_batch(std::int64_t) override {
    const at::Tensor w = trainable_.at("w");
    return {(w - w.detach()).sum() + loss_(step_ + 1), {}};
  }
  bool at_checkpoint() const override { return (step_ + 1) % between_ == 0; }

 private:
  std::function<double(std::int64_t)> loss_;
  std::int64_t between_;
  std::int64_t step_ = 0;
  ParameterSet trainable_;
};

inline TrainConfig short_training() {
  TrainConfig config;
  config.steps = 40;
  config.checkpoint_every = 5;
  config.keep_checkpoints = 2;
  config.optimizer.gradient_clip = 0;
  return config;
}

inline std::map<std::string, double> metrics_at(const std::filesystem::path& run, std::int64_t step,
                                                const std::string& having) {
  for (const auto& line : read_json_lines(run / "metrics.jsonl")) {
    if (line.at("step") != step || !line.contains(having)) continue;
    std::map<std::string, double> out;
    for (const auto& [key, value] : line.items()) out[key] = number_from_json(value);
    return out;
  }
  ADD_FAILURE() << "no " << having << " at step " << step;
  return {};
}

}  // namespace tiltflow::test
