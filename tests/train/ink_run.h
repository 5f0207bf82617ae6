// A fine-tuning run of the shipped digits in a few steps.
#pragma once

#include "tests/support.h"
#include "tests/train/small_model.h"
#include "tiltflow/train/finetuning.h"

namespace tiltflow::test {

// A small digit-like model on disk and a configuration that fine-tunes it in seconds.
inline FinetuneConfig ink_run(const test::TempDir& dir, const std::string& policy = "full") {
  test::save_small_sit(dir / "base.safetensors");
  FinetuneConfig config;
  config.model.file = (dir / "base.safetensors").string();
  config.batch = 6;
  config.micro_batch = 2;
  config.sampler.steps = 5;
  config.method.adjoint = adjoint_matching_preset("exact", 5);
  config.method.adjoint.loss_steps = 3;
  config.method.adjoint.clip_quantile = 0.9;
  config.policy.kind = policy;
  config.reward = {RewardTerm{}};
  config.reward[0].scale = 20;
  config.evaluation.every = 3;
  config.evaluation.samples = 4;
  config.evaluation.base_samples = 16;
  config.compute.workers = 2;
  config.train.steps = 7;
  config.train.average_decay = 0.9;
  config.train.checkpoint_every = 2;
  return config;
}

}  // namespace tiltflow::test
