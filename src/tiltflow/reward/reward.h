// Rewards: a number per sample, higher is better, no hidden offsets. p* is proportional to p_base
// exp(reward).
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "tiltflow/config/fields.h"

namespace tiltflow {

struct RewardInfo {
  std::string name;
  bool has_gradient = true;
  std::string citation;
  bool gradient_known =
      true;  // false: of a program from outside; whether has_gradient is true shows in a call
};

// What a batch is scored against; made once per batch of labels (or prompts).
struct RewardCondition {
  at::Tensor labels;  // [N] int64 or undefined
};

class Reward {
 public:
  virtual ~Reward() = default;
  virtual const RewardInfo& info() const = 0;
  virtual RewardCondition prepare(const at::Tensor& labels) const { return {labels}; }
  // Images [N, C, H, W] (nominally in [0, 1], not clamped) or vectors [N, d] -> [N]. Differentiable
  // if info() says so.
  virtual at::Tensor score(const at::Tensor& samples, const RewardCondition& condition) const = 0;
  virtual std::vector<const Reward*> terms() const { return {this}; }  // of a sum: its parts
  virtual std::vector<double> scales() const { return {1}; }           // of the terms
};

// One [[reward]] section; a sum of terms is the reward.
struct RewardTerm {
  std::string name = "ink";
  double scale = 1;
  std::vector<double> slope;   // linear: w, one number or one per dimension
  std::vector<double> center;  // quadratic: c, likewise
  double curvature = 1;        // quadratic: -curvature/2 |x - c|^2
  double level = 0;            // step
  bool over_normal = false;    // log-density
  std::int64_t label = -1;     // class-log-prob: the class; -1 = the sample's own label
  std::string judge;           // class-log-prob: file of the classifier
  double target = -1;          // brightness: -(mean - target)^2; negative: the mean itself
  std::string clip, head;      // aesthetic: CLIP folder or file, head file
  std::map<std::string, std::string>
      args;  // aesthetic: num_heads, activation of CLIP where its file does not say; log-density:
             // weights, means, deviations
  std::string file;                   // torchscript: the module
  bool gradient = true;               // false: the reward is used as a black box
  std::shared_ptr<const Reward> own;  // no key: the reward of a program that brings its own
};
void bind(Fields& f, RewardTerm& c);
// The term of a reward that a program brings, under the reward's own name.
RewardTerm own_reward(std::shared_ptr<const Reward> reward, double scale = 1);

// Throws kConfig for unknown names and missing keys, kBadFile for an unreadable judge.
std::shared_ptr<const Reward> make_reward(const RewardTerm& term);
// sum_i scale_i reward_i
std::shared_ptr<const Reward> make_weighted_sum(const std::vector<RewardTerm>& terms);

struct RewardListing {
  std::string name, doc;
};
const std::vector<RewardListing>& reward_listing();

}  // namespace tiltflow
