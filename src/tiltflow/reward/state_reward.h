// A reward seen from the sampler's side: states are decoded, scored, and the gradient comes back to
// the state.
#pragma once

#include <functional>
#include <memory>

#include "tiltflow/models/autoencoder/autoencoder.h"
#include "tiltflow/models/flow_model.h"
#include "tiltflow/reward/reward.h"
#include "tiltflow/tensor/random.h"

namespace tiltflow {

// State -> what rewards see. Differentiable. Identity for vectors; pixel models live in [-1, 1],
// images in [0, 1].
using Decoder = std::function<at::Tensor(const at::Tensor&)>;
Decoder identity_decoder();
Decoder pixel_decoder();  // (x + 1) / 2, not clamped
Decoder latent_decoder(std::shared_ptr<const Autoencoder>
                           autoencoder);  // scaled latents to images in [0, 1], not clamped
// The decoder of samples of this shape: latents when there is an autoencoder, pixels for images,
// vectors as they are. Throws kConfig when shape and autoencoder do not fit.
Decoder decoder_for(const std::vector<std::int64_t>& sample_shape,
                    std::shared_ptr<const Autoencoder> autoencoder);
// The decoder of a flow's states: of several agents, what they make together
// (FlowModel::aggregate).
Decoder decoder_of(const FlowModel& flow, std::shared_ptr<const Autoencoder> autoencoder);

struct ScoreAndGradient {
  at::Tensor score;     // [N]
  at::Tensor gradient;  // d score_i / d state_i, like the state
};

// Scores with the terms they are made of, before their scales (Reward::terms).
struct TermScores {
  at::Tensor score;  // [N]
  at::Tensor terms;  // [N, terms], without graph
};

class StateReward {
 public:
  StateReward(std::shared_ptr<const Reward> reward, Decoder decoder)
      : reward_(std::move(reward)), decoder_(std::move(decoder)) {}
  const Reward& reward() const { return *reward_; }
  at::Tensor decode(const at::Tensor& state) const { return decoder_(state); }
  // All throw kNonFinite when a score or gradient is not finite, and say whether the sample was.
  // `shared`: of several processes that all call with the same states each scores its pieces of 32,
  // all get everything.
  at::Tensor score(const at::Tensor& state, const at::Tensor& labels, bool shared = false) const;
  ScoreAndGradient score_and_gradient(const at::Tensor& state, const at::Tensor& labels) const;
  at::Tensor score_with_graph(const at::Tensor& state,
                              const at::Tensor& labels) const;  // differentiable; in one piece
  TermScores score_terms(const at::Tensor& state, const at::Tensor& labels,
                         bool shared = false) const;  // as score
  // The same reward, which shows every scoring to `observer` (without graph, in the thread that
  // asked).
  StateReward observed(std::function<void(const TermScores&)> observer) const;

 private:
  void require_finite_score(const at::Tensor& score, const at::Tensor& state) const;
  std::shared_ptr<const Reward> reward_;
  Decoder decoder_;
  std::function<void(const TermScores&)> observer_;  // or empty
};

// What autograd gives of one term of a reward: no graph at all (integers, no_grad, another
// program), a gradient that is exactly zero, or a gradient.
enum class TermGradient { kNone, kZero, kPresent };
struct ObservedTerm {
  std::string name;
  TermGradient gradient = TermGradient::kPresent;
  bool varies = false;  // its scores differ between the states
};
// Every term at these states. Throws what the reward throws. Cost: one score and one gradient of
// each term.
std::vector<ObservedTerm> observe_terms(const StateReward& reward, const at::Tensor& states,
                                        const at::Tensor& labels);

// Throws kConfig when all scores are the same.
void require_varied(const at::Tensor& scores, const std::string& name);

// Start-up check on a few states (two or more): the score varies or has a gradient, both are
// finite, and the gradient agrees with central differences along random directions. Throws kConfig
// (constant, wrong gradient) or kNonFinite. Returns the largest relative disagreement. Cost: 4
// scores and 1 gradient.
double check_reward(const StateReward& reward, const at::Tensor& states, const at::Tensor& labels,
                    const RandomStreams& streams);

}  // namespace tiltflow
