// A run whose reward is a step: no gradient leads over it.
#pragma once

#include "tests/support.h"
#include "tiltflow/train/finetuning.h"

namespace tiltflow::test {

inline FinetuneConfig step_task() {
  FinetuneConfig c;
  c.model.family = "gaussian-mixture";
  c.model.args = {{"means", "-0.8 0; 0.8 0"}, {"deviations", "0.6"}};
  RewardTerm reward;
  reward.name = "step";
  reward.scale = 1.5;
  reward.slope = {1, 0};
  reward.level = 0.5;
  c.reward = {reward};
  c.policy.kind = "control";
  c.policy.control.kind = "mlp";
  c.policy.control.width = 32;
  c.policy.control.depth = 2;
  c.method.adjoint = adjoint_matching_preset("exact", 20);
  c.sampler.steps = 20;
  c.batch = 64;
  c.micro_batch = 32;
  c.evaluation.every = 0;
  c.evaluation.base_samples = 64;
  c.train.steps = 150;
  c.train.optimizer.learning_rate = 5e-3;
  c.train.optimizer.final_fraction = 0.02;
  c.train.average_decay = 0.95;
  c.train.checkpoint_every = 100;
  c.surrogate.every = 5;
  c.surrogate.samples = 128;
  return c;
}

}  // namespace tiltflow::test
