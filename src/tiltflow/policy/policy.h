// A policy: one frozen base field and one tuned field that starts equal to it, with the weights that training may change.
// full: every weight is trained on a copy. lora: the base's weights are shared and frozen, low-rank adapters are trained.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "tiltflow/config/fields.h"
#include "tiltflow/models/velocity_model.h"
#include "tiltflow/tensor/random.h"

namespace tiltflow {

struct PolicyConfig {
  std::string kind = "full";
  std::int64_t rank = 8;
  double alpha = 8;  // the adapter is scaled by alpha / rank
  std::vector<std::string> targets = {"*.attn.qkv", "*.attn.proj", "*.mlp.fc1", "*.mlp.fc2"};
};
void bind(Fields& f, PolicyConfig& c);

struct Policy {
  std::shared_ptr<const VelocityField> base, tuned;
  ParameterSet trainable;
  // Cost of a training backward in units of one forward: 2 with weight gradients everywhere, 1 for adapters only.
  int backward_cost = 2;
};

Policy full_policy(const VelocityModel& model);
// Adapters: A uniform as in PEFT (Kaiming, a = sqrt 5), B zero. Trainable names are PEFT's: NAME.lora_A.weight,
// NAME.lora_B.weight. Throws kConfig when no layer matches the targets.
Policy lora_policy(const VelocityModel& model, const PolicyConfig& config, const RandomStreams& streams);
Policy make_policy(const VelocityModel& model, const PolicyConfig& config, std::uint64_t seed);

// Weights of the tuned model as one plain set: trained copies (full) or base + strength * adapters (lora).
ParameterSet merged_weights(const VelocityModel& model, const PolicyConfig& config, const ParameterSet& trained, double strength = 1);

// base field + gain(t) * side network: for analytic bases. The side network's output must start at zero.
Policy side_policy(std::shared_ptr<const VelocityField> base, const VelocityModel& side, std::function<double(double)> gain);

}  // namespace tiltflow
