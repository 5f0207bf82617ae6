// All fine-tuning methods by name: configuration, construction, what they need and what they
// sample.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "tiltflow/finetune/adjoint_matching.h"
#include "tiltflow/finetune/basic_adjoint.h"
#include "tiltflow/finetune/direct_gradient.h"
#include "tiltflow/finetune/endpoint_regression.h"
#include "tiltflow/finetune/path_losses.h"
#include "tiltflow/finetune/policy_gradient.h"
#include "tiltflow/finetune/reciprocal_adjoint.h"
#include "tiltflow/finetune/soc_matching.h"
#include "tiltflow/finetune/value_regression.h"

namespace tiltflow {

// The [method] section: the name decides which of the records is read.
struct MethodConfig {
  std::string name = "adjoint-matching";
  // No key: makes the method of a program that brings its own. Called several times, from one
  // thread; empty = the method that `name` says.
  std::function<std::unique_ptr<FinetuneMethod>()> own;
  AdjointMatchingConfig adjoint;
  DirectGradientConfig direct;
  EndpointConfig endpoint;
  PolicyGradientConfig policy_gradient;
  PathLossConfig path;
  SocMatchingConfig soc;
  ReciprocalConfig reciprocal;
  ValueConfig value;
  bool noise() const { return name != "adjoint-matching" || adjoint.noise; }  // of rollouts
};
void bind(Fields& f, MethodConfig& c);
std::unique_ptr<FinetuneMethod> make_method(const MethodConfig& config);

struct MethodListing {
  std::string name, samples, needs, paper;
  std::string calls;  // of the network, per sample and optimiser step with K sampler steps, M
                      // noisings, n loss steps: without | with graph
  bool reward_gradient() const { return needs.find("reward gradient") != std::string::npos; }
};
const std::vector<MethodListing>& method_listing();
std::vector<std::string>
methods_without_reward_gradient();  // names of those that work with a black box
// Throws kConfig: `method` needs the gradient of `reward`, which has none (`why`: how that is
// known); the hint names those that need none.
[[noreturn]] void refuse_missing_gradient(const std::string& method, const std::string& reward,
                                          const std::string& why);
std::string
method_table_text();  // name, what it samples, whether it needs the reward's gradient, calls

// Refuses what cannot work, with the reason and the methods that can: rewards without gradient,
// samplers with noiseless steps. Throws kConfig.
void require_method_fits(const FinetuneMethod& method, const RewardInfo& reward,
                         const TransitionTable& table);
// The same for groups, which batch and pieces of work must keep whole.
void require_groups_fit(const FinetuneMethod& method, std::int64_t batch, std::int64_t micro_batch);
// The same for rewards that depend on where a sample starts: methods that take none, memoryless
// samplers.
void require_extra_reward_fits(const FinetuneMethod& method, const TransitionTable& table);
// The same for what surrounds it: reused batches, other policies than a scalar's gradient, other
// bases than N(0, I).
void require_surroundings_fit(const FinetuneMethod& method, std::int64_t buffer_passes,
                              const PolicyConfig& policy, const FlowModel& base);

}  // namespace tiltflow
