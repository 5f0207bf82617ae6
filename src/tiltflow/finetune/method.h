// What a fine-tuning method is: it collects a batch without a graph and turns it into a loss.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "tiltflow/policy/policy.h"
#include "tiltflow/reward/state_reward.h"
#include "tiltflow/sampler/sample.h"
#include "tiltflow/tensor/loss_report.h"

namespace tiltflow {

struct MethodNeeds {
  bool reward_gradient = false;  // of the reward with respect to the sample
  bool base_jacobian = false;    // products of vectors with the base's Jacobian
  bool step_density = false;     // every step of the sampler has noise
  std::int64_t group = 1;  // consecutive samples of one label that are compared: divides batch and
                           // micro-batch; 1 = none
  bool on_policy = false;  // every batch serves one step: buffer_passes = 1
  bool potential = false;  // the policy is the gradient of a scalar network
  bool standard_normal = false;  // the base is N(0, I)
};

// Everything a method works with; owned by the caller.
struct FinetuneContext {
  const Policy& policy;
  const StateReward& reward;
  const Path& path;
  const TransitionTable& table;
  const RandomStreams& streams;
  const LabelSource& labels;
  std::vector<std::int64_t> sample_shape;
  at::ScalarType dtype = at::kFloat;
  double log_z = 0;  // estimate of log E_base exp(r): scales path weights, nothing else
  // What the reward gets on top for where a sample comes from: (x_0, x_1, labels) -> [n],
  // differentiable in x_1 (mode-preserving rewards); empty = nothing.
  std::function<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&)> extra_reward =
      {};
};

// A batch of trajectories with what the loss needs; no graph except in `with_graph`.
struct Batch {
  std::int64_t first = 0;
  std::int64_t n = 0;
  at::Tensor labels, rewards;  // [n]
  at::Tensor start;  // x_0, of methods whose states begin later and whose reward depends on it
  at::Tensor control_cost;  // [n] path KL of the collecting policy against the base
  at::Tensor log_weights;   // [n] log dP*/dP of the path under the collecting policy, up to log Z
  std::vector<at::Tensor> states;            // K+1
  std::vector<at::Tensor> targets;           // K: the adjoint that the loss of step k pairs with
  std::vector<at::Tensor> base_velocities;   // K
  std::vector<at::Tensor> tuned_velocities;  // K: of the policy that collected the batch
  std::vector<at::Tensor> with_graph;        // K or empty
  std::vector<at::Tensor> noises;            // K: xi_k of the rollout
  std::vector<at::Tensor> times;  // of methods that noise their end points anew: [n] each, beside
                                  // states, targets and velocities
  at::Tensor advantages;          // [n] of the rewards within their group
  MetricSums metrics;             // measured while collecting
};

class FinetuneMethod {
 public:
  virtual ~FinetuneMethod() = default;
  virtual std::string name() const = 0;
  virtual MethodNeeds needs() const = 0;
  // Network calls with a graph, per sample and optimiser step: what the backward pass costs.
  virtual double training_calls(const TransitionTable& table) const = 0;
  // Steps after which the calls of a step repeat: above 1 for methods that do not draw in every
  // step.
  virtual std::int64_t period() const { return 1; }
  // Whether it adds FinetuneContext::extra_reward to the rewards.
  virtual bool adds_extra_reward() const { return false; }
  // Whether the rewards of its batches are those of the policy's samples, each as likely as the
  // policy makes it.
  virtual bool rewards_are_the_policys() const { return true; }
  // Whether learning lowers the loss. False where the loss is measured against the moving policy
  // itself, so that its value says nothing.
  virtual bool loss_falls() const { return true; }
  // Reads the files that the method will use and throws what is wrong with them; before the first
  // step.
  virtual void check_files(const std::vector<std::int64_t>& /*sample_shape*/) const {}
  // Draws step-wide choices (which time steps enter the loss). `pass`: how often the current batch
  // was used before; 0: a collect follows.
  virtual void begin_step(const FinetuneContext& context, std::int64_t step, std::int64_t pass) = 0;
  // Samples first..first+n of step `step`. Thread-safe. `will_reuse`: the batch serves several
  // steps.
  virtual Batch collect(const FinetuneContext& context, std::int64_t step, std::int64_t first,
                        std::int64_t n, bool will_reuse) = 0;
  // `total`: samples of the whole step (the loss is a mean over them). Thread-safe.
  virtual LossReport loss(const FinetuneContext& context, const Batch& batch,
                          std::int64_t total) = 0;
  virtual void end_step(std::map<std::string, double>& metrics) = 0;
  virtual ParameterSet state() const { return {}; }
  virtual void restore(const ParameterSet& /*state*/) {}
};

// Paths of the collecting policy: states, velocities, noises. `with_graph` [K]: steps whose
// velocity keeps its graph for the loss, which then needs no second call; ignored when the batch is
// reused or collected by another field than the tuned one.
Batch collect_paths(const FinetuneContext& context, std::int64_t step, std::int64_t first,
                    std::int64_t n, const at::Tensor& labels, std::vector<bool> with_graph,
                    bool will_reuse);
// Base velocities along a batch's paths (those that an adjoint pass has left there are kept), its
// control cost, and log dP_base/dP of its paths, [n] double, all from step `begin` on.
at::Tensor measure_against_base(const FinetuneContext& context, Batch& batch,
                                std::size_t begin = 0);
// Velocities of the tuned model at the states of these steps, with graph: kept ones, or one call
// for all.
std::vector<at::Tensor> velocities_along(const FinetuneContext& context, const Batch& batch,
                                         const std::vector<std::int64_t>& steps);
std::vector<std::int64_t> all_steps(const TransitionTable& table);  // 0..K-1

// What every method logs of a batch: rewards, their deviation and, where it is known, the control
// cost.
void add_batch_metrics(LossReport& report, const Batch& batch);
void finish_batch_metrics(std::map<std::string, double>& metrics);

}  // namespace tiltflow
