// A policy: one frozen base field and one tuned field that starts equal to it or at `policy.start`,
// with the weights that training may change. full: weights (all, or those that match patterns) are
// trained on a copy. lora: the base's weights are shared and frozen, low-rank adapters are trained.
// control: shared and frozen too, a small network beside them is trained.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "tiltflow/config/fields.h"
#include "tiltflow/models/control/control_net.h"
#include "tiltflow/models/flow_model.h"
#include "tiltflow/tensor/random.h"

namespace tiltflow {

struct PolicyConfig {
  std::string kind = "full";
  std::string start;  // what the tuned field starts from instead of the base, see policy/start.h;
                      // "" = the base
  std::vector<std::string> trainable = {"*"};  // full: patterns of the tensors that may change
  ControlConfig control;                       // control
  std::int64_t rank = 8;
  double alpha = 8;  // the adapter is scaled by alpha / rank
  std::vector<std::string> targets = {"*.attn.qkv", "*.attn.proj", "*.mlp.fc1", "*.mlp.fc2"};
};
void bind(Fields& f, ControlConfig& c);
void bind(Fields& f, PolicyConfig& c);

struct Policy {
  std::shared_ptr<const VelocityField> base, tuned;
  std::shared_ptr<const VelocityField>
      rollout;  // what collects trajectories when it is not `tuned`, e.g. guided; or null
  const VelocityField& collector() const { return rollout ? *rollout : *tuned; }
  // log E[exp r | X_t = x] less a constant, [n]: of control networks of kind potential, else null.
  std::function<at::Tensor(const at::Tensor& x, const at::Tensor& t, const Condition& condition)>
      log_value;
  ParameterSet trainable;
  // Cost of a training backward in units of one forward: 2 with weight gradients everywhere, 1 for
  // adapters only.
  int backward_cost = 2;
};

// Throws kConfig when a pattern matches no tensor. Tensors that match none are shared with the
// base.
Policy full_policy(const VelocityModel& model, const std::vector<std::string>& trainable = {"*"});
// Adapters: A uniform as in PEFT (Kaiming, a = sqrt 5), B zero. Trainable names are PEFT's:
// NAME.lora_A.weight, NAME.lora_B.weight. Throws kConfig when a target matches no layer (of the
// default list: when none does).
Policy lora_policy(const VelocityModel& model, const PolicyConfig& config,
                   const RandomStreams& streams);
// A network beside the frozen model; its output starts at zero. Trainable names: control.*.
Policy control_policy(std::shared_ptr<const VelocityModel> model, std::shared_ptr<const Path> path,
                      const ControlConfig& config, const RandomStreams& streams);
Policy make_policy(const FlowModel& flow, const PolicyConfig& config, std::uint64_t seed);
// Bytes of what would be trained. Throws what make_policy would, without copying the weights.
double trainable_bytes(const FlowModel& flow, const PolicyConfig& config);

// The tuned model as one that stands alone, with values of `trained`: copies (full), base +
// strength * adapters (lora), or base and control network (control; strength scales the network's
// last layer).
std::unique_ptr<VelocityModel> merged_model(const FlowModel& flow, const PolicyConfig& config,
                                            const ParameterSet& trained, double strength = 1);

// base field + control gain * side network: for analytic bases. The side network's output must
// start at zero.
Policy side_policy(std::shared_ptr<const VelocityField> base, const VelocityModel& side,
                   std::shared_ptr<const Path> path);

}  // namespace tiltflow
