// Keeping the modes of a policy that a reward would merge (the intrinsic reward of Behavioral Mode
// Discovery): the noise a sample starts from has a code z, a classifier q(z | x_1) is trained
// beside the policy, and c (log q(z | x_1) - log p(z)) is added to the reward: samples must go on
// telling where they came from, so different noise must keep leading to different samples. The code
// is the quantile of the noise along one fixed direction: it has the uniform law for every number
// of codes, and noise keeps its own. Under a memoryless sampler samples forget their noise:
// refused.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "tiltflow/finetune/method.h"
#include "tiltflow/train/optimizer.h"
#include "tiltflow/train/state_network.h"

namespace tiltflow {

struct ModesConfig : SideFitConfig {
  ModesConfig() {
    every = 1;
    fits = 20;
  }
  std::int64_t codes = 0;  // 0: off
  double weight = 1;       // c
};
void bind(Fields& f, ModesConfig& c);

class ModePreservation {
 public:
  ModePreservation(ModesConfig config, const std::vector<std::int64_t>& shape, std::int64_t classes,
                   std::uint64_t seed);
  // [N] int64 in [0, codes)
  at::Tensor codes(const at::Tensor& x_0) const;
  // c (log q(z | x_1, label) + log codes), [N]; differentiable in x_1
  at::Tensor extra_reward(const at::Tensor& x_0, const at::Tensor& x_1,
                          const at::Tensor& labels) const;
  bool due(std::int64_t step) const { return step % config_.every == 0; }
  // Draws from the collecting policy and fits. The same on every process. Cost: samples x K network
  // calls.
  void refresh(const FinetuneContext& context, std::int64_t step);
  void add_metrics(std::map<std::string, double>& metrics)
      const;  // mode_accuracy and mode_bonus of new samples, before the last fit
  ParameterSet state() const;
  void restore(const ParameterSet& state);

 private:
  ModesConfig config_;
  at::Tensor direction_;           // unit vector, [d]
  ParameterSet weights_, frozen_;  // the same memory, with and without graph
  std::unique_ptr<AdamW> optimizer_;
  bool fresh_ = true;
  double accuracy_ = 0;
  double extra_reward_ = 0;
};

}  // namespace tiltflow
