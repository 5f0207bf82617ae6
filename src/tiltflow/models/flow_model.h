// The base model of a run: a network with the path and the prediction that make it a flow. The
// [model] section.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "tiltflow/config/fields.h"
#include "tiltflow/flow/path.h"
#include "tiltflow/models/model_file.h"

namespace tiltflow {

struct FlowModelConfig {
  std::string file;
  std::string family;  // without a file: "gaussian-mixture", made from args
  std::vector<std::string>
      agents;  // instead of a file: several models under one policy, see models/product
  std::string
      aggregate;  // what a reward sees of them: mean, sum, max; "" = what the file says, else mean
  std::string weights;     // PyTorch checkpoint: which state dict; "" = ema when there is one
  std::string path;        // interpolation path; "" = what the file says, else linear
  std::string prediction;  // velocity, noise, score; "" = what the file says, else velocity
  std::map<std::string, std::string>
      args;  // override what the file says (official constructor names)
  // No key: makes the network of a program that brings its own, instead of a file. Called again
  // when it must run otherwise (activation checkpointing). Empty = the model that the keys say.
  std::function<std::unique_ptr<VelocityModel>(const ModelRuntime& runtime)> own;
};
void bind(Fields& f, FlowModelConfig& c);

struct FlowModel {
  std::shared_ptr<const VelocityModel> model;  // velocities, whatever the network predicts
  std::shared_ptr<const Path> path;
  std::string prediction;
  std::string aggregate = "mean";  // of several agents
  // What a file made from this model must say to be read back as the same flow.
  std::map<std::string, std::string> metadata() const;
};
// Throws kConfig (no file, unknown names) and kBadFile.
FlowModel load_flow_model(const FlowModelConfig& config, ModelRuntime runtime = {},
                          at::ScalarType dtype = at::kFloat);

// `network` predicts noise or score; the result answers with velocities. Weights, names and
// arguments stay the network's.
std::unique_ptr<VelocityModel> with_prediction(std::unique_ptr<VelocityModel> network,
                                               std::shared_ptr<const Path> path,
                                               const std::string& prediction);

}  // namespace tiltflow
