// A fine-tuning run of seconds that uses every part: a SiT, a network as reward, evaluations and
// checkpoints; on any device.
#pragma once

#include "tests/support.h"
#include "tests/train/small_model.h"
#include "tiltflow/models/classifier/classifier.h"
#include "tiltflow/tensor/device.h"
#include "tiltflow/train/finetuning.h"

namespace tiltflow::test {

struct BackToCpu {
  ~BackToCpu() { set_compute_device("cpu"); }
};

inline FinetuneConfig small_run(const TempDir& dir) {
  save_small_sit(dir / "base.safetensors");
  ClassifierConfig judge;
  judge.input_size = 8;
  judge.width = 4;
  judge.features = 6;
  judge.num_classes = 3;
  save_classifier(dir / "judge.safetensors", judge, init_classifier(judge, RandomStreams(2)));
  FinetuneConfig config;
  config.model.file = (dir / "base.safetensors").string();
  config.batch = 4;
  config.micro_batch = 2;
  config.sampler.steps = 4;
  config.method.adjoint = adjoint_matching_preset("exact", 4);
  config.method.adjoint.loss_steps = 2;
  config.reward = {RewardTerm{}};
  config.reward[0].name = "class-log-prob";
  config.reward[0].judge = (dir / "judge.safetensors").string();
  config.reward[0].scale = 5;
  config.labels.kind = "uniform";
  config.evaluation.every = 2;
  config.evaluation.samples = 4;
  config.evaluation.base_samples = 16;
  config.compute.workers = 1;
  config.compute.attention = "math";
  config.compute.kernels = "plain";
  config.train.steps = 4;
  config.train.checkpoint_every = 2;
  return config;
}

// The weights it ends with, as the file holds them.
inline std::string run_on(const std::string& device, FinetuneConfig config,
                          const std::filesystem::path& out, bool resume = false) {
  const BackToCpu restore;
  config.compute.device = device;
  const FinetuneSetup setup = set_up(config);
  tiltflow::Run run(out, "x", resume);
  finetune(setup, run);
  return read_file(out / "model.safetensors");
}

}  // namespace tiltflow::test
