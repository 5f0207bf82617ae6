// The configuration of `tiltflow pretrain` and its runs: a velocity model by flow matching, a
// conditional GAN, or the judge.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "tiltflow/config/fields.h"
#include "tiltflow/io/dataset.h"
#include "tiltflow/models/runtime_config.h"
#include "tiltflow/models/velocity_model.h"
#include "tiltflow/train/pretraining_monitor.h"
#include "tiltflow/train/trainer.h"

namespace tiltflow {

void bind(Fields& f, DatasetConfig& c);

struct PretrainDataConfig : DatasetConfig {
  bool flip = false;
  double held_out =
      0;  // share of the training items for validation; 0: the set's test split, if it has one
};
void bind(Fields& f, PretrainDataConfig& c);

struct PretrainModelConfig {
  std::string family = "sit";
  std::string path = "linear";
  std::string prediction = "velocity";
  std::string init;
  std::string teacher;
  std::map<std::string, std::string> args;
};
void bind(Fields& f, PretrainModelConfig& c);

struct PretrainConfig {
  std::string kind = "flow";
  std::int64_t seed = 0;
  std::int64_t batch = 128;
  std::int64_t micro_batch = 32;
  double label_dropout = 0.1;
  std::string time_sampling = "uniform";
  std::string loss_weight = "none";
  double epsilon = -1;
  double noise = 0.3;
  std::int64_t shift = 2;
  double label_smoothing = 0;
  std::int64_t discriminator_steps = 1;
  std::string evaluate_on = "test";  // classifier: whose accuracy is measured at the end
  PretrainDataConfig data{{"idx", "data/mnist"}};
  PretrainModelConfig model;
  PretrainEvaluation evaluation;
  ComputeConfig compute;
  TrainConfig train;
};
void bind(Fields& f, PretrainConfig& c);

struct PretrainSetup {
  PretrainConfig config;
  std::unique_ptr<VelocityModel>
      model;  // flow: fresh, or with the weights of model.init; null otherwise
  ImageDataset data;
  ImageDataset held_out;  // never trained on, with the training split's class numbers; may be empty
  std::shared_ptr<const VelocityModel> teacher = nullptr;  // of model.teacher, if any
};
// Reads and checks everything the configuration names: data, initial weights, constructor
// arguments. Throws kConfig, kBadFile.
PretrainSetup set_up(const PretrainConfig& config);

// Trains to the end, continuing from the run's newest checkpoint, and writes model.safetensors
// (averaged weights; gan: the generator, and discriminator.safetensors).
void pretrain(PretrainSetup setup, Run& run);

}  // namespace tiltflow
