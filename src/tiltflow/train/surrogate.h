// A learned reward in place of one that has no gradient (the latent reward model of DOLLAR, arXiv
// 2412.15689): a small network on states is fitted to the true rewards of samples of the current
// policy, kept in a buffer and refreshed on the way; methods that need a gradient see the network.
// What it explains of samples that it has not seen yet is logged before every fit (surrogate_r2):
// when that is low, the law that is reached is not the true reward's.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "tiltflow/finetune/method.h"
#include "tiltflow/train/optimizer.h"
#include "tiltflow/train/state_network.h"

namespace tiltflow {

struct SurrogateConfig : SideFitConfig {  // every = 0: no surrogate
  std::int64_t buffer = 4096;             // newest samples that are kept
};
void bind(Fields& f, SurrogateConfig& c);

class Surrogate {
 public:
  // `shape` of a state: [d] (a multilayer perceptron) or [C, H, W] (two strided convolutions);
  // `classes` as of the model.
  Surrogate(SurrogateConfig config, const std::vector<std::int64_t>& shape, std::int64_t classes,
            std::uint64_t seed);
  const StateReward& reward() const { return *reward_; }
  bool due(std::int64_t step) const { return step % config_.every == 0 || size() == 0; }
  // Draws from the collecting policy, scores with `truth` (without its gradient), fits. The same on
  // every process. Cost: samples x K network calls.
  void refresh(const FinetuneContext& context, const StateReward& truth, std::int64_t step);
  void add_metrics(std::map<std::string, double>& metrics)
      const;  // surrogate_r2 and true_reward of the last refresh
  ParameterSet state() const;
  void restore(const ParameterSet& state);

 private:
  std::int64_t size() const { return states_.defined() ? states_.size(0) : 0; }
  void fit(const RandomStreams& streams, std::int64_t step, std::int64_t count);
  SurrogateConfig config_;
  ParameterSet weights_, numbers_;  // trained; location and spread of the rewards
  std::shared_ptr<const StateReward> reward_;
  std::unique_ptr<AdamW> optimizer_;
  at::Tensor states_, labels_, rewards_;
  double r2_ = 0;
  double true_reward_ = 0;
};

}  // namespace tiltflow
