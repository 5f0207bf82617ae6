#include "tiltflow/reward/state_reward.h"

#include <cmath>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/models/product/product_model.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/tensor/parallel.h"
#include "tiltflow/tensor/precision.h"
#include "tiltflow/tensor/process_group.h"

namespace tiltflow {

Decoder identity_decoder() {
  return [](const at::Tensor& x) { return x; };
}
Decoder pixel_decoder() {
  return [](const at::Tensor& x) { return (x + 1) * 0.5; };
}

Decoder latent_decoder(std::shared_ptr<const Autoencoder> autoencoder) {
  return [autoencoder](const at::Tensor& x) {
    return (autoencoder->decode(autoencoder->from_scaled(x)) + 1) * 0.5;
  };
}

Decoder decoder_for(const std::vector<std::int64_t>& shape,
                    std::shared_ptr<const Autoencoder> autoencoder) {
  const bool image = shape.size() == 3;
  if (!autoencoder) return image ? pixel_decoder() : identity_decoder();
  if (!image || shape[0] != autoencoder->latent_channels()) {
    fail(ErrorKind::kConfig,
         cat("the model makes ", shape_text(shape), ", the autoencoder decodes ",
             autoencoder->latent_channels(), "-channel latents"));
  }
  return latent_decoder(std::move(autoencoder));
}

Decoder decoder_of(const FlowModel& flow, std::shared_ptr<const Autoencoder> autoencoder) {
  const std::int64_t agents = agents_of(flow.model->spec());
  std::vector<std::int64_t> shape = flow.model->sample_shape();
  shape[0] /= agents;
  Decoder one = decoder_for(shape, std::move(autoencoder));
  if (agents == 1) return one;
  return [one = std::move(one), agents, how = flow.aggregate](const at::Tensor& x) {
    return one(aggregated(x, agents, how));
  };
}

namespace {

// Of images; the score carries the graph.
TermScores score_images(const Reward& reward, const at::Tensor& images, const at::Tensor& labels) {
  const std::vector<const Reward*> parts = reward.terms();
  const std::vector<double> scales = reward.scales();
  TermScores out;
  std::vector<at::Tensor> columns;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const at::Tensor part = parts[i]->score(images, parts[i]->prepare(labels));
    if (part.dim() != 1 || part.size(0) != images.size(0)) {
      fail(ErrorKind::kFailure,
           cat("reward ", parts[i]->info().name, " returned ", shape_text(part.sizes()),
               "; expected one number a sample, [", images.size(0), "]"));
    }
    const at::Tensor scaled = parts[i] == &reward ? part : part * scales[i];
    out.score = out.score.defined() ? out.score + scaled : scaled;
    columns.push_back(part.detach());
  }
  out.terms = at::stack(columns, 1);
  return out;
}

}  // namespace

StateReward StateReward::observed(std::function<void(const TermScores&)> observer) const {
  StateReward out = *this;
  out.observer_ = std::move(observer);
  return out;
}

void StateReward::require_finite_score(const at::Tensor& score, const at::Tensor& state) const {
  if (at::isfinite(score).all().item<bool>()) return;
  if (!at::isfinite(state).all().item<bool>()) {
    fail(ErrorKind::kNonFinite, "the samples to be scored contain NaN or infinity",
         "the policy has diverged: lower train.learning_rate, or set train.gradient_clip");
  }
  fail(ErrorKind::kNonFinite,
       cat("reward ", reward_->info().name, " contains NaN or infinity at finite samples"),
       "does it divide by something that can be zero, or take a root or logarithm of it?");
}

at::Tensor StateReward::score_with_graph(const at::Tensor& state, const at::Tensor& labels) const {
  const TermScores scored = score_images(*reward_, decoder_(state), labels);
  require_finite_score(scored.score, state);
  if (observer_) observer_({scored.score.detach(), scored.terms});
  return scored.score;
}

at::Tensor StateReward::score(const at::Tensor& state, const at::Tensor& labels,
                              bool shared) const {
  return score_terms(state, labels, shared).score;
}

TermScores StateReward::score_terms(const at::Tensor& state, const at::Tensor& labels,
                                    bool shared) const {
  constexpr std::int64_t kPiece = 32;  // bounds the memory of decoders and large reward networks
  const std::int64_t rank = shared ? world_rank() : 0;
  const std::int64_t size = shared ? world_size() : 1;
  const std::int64_t pieces = (state.size(0) + kPiece - 1) / kPiece;
  const std::int64_t terms = static_cast<std::int64_t>(reward_->terms().size());
  const TermScores out{at::zeros({state.size(0)}, state.options()),
                       at::zeros({state.size(0), terms}, state.options())};
  parallel_for((pieces - rank + size - 1) / size, [&](std::int64_t mine) {
    const at::NoGradGuard no_grad;
    const std::int64_t begin = (rank + mine * size) * kPiece;
    const std::int64_t n = std::min(kPiece, state.size(0) - begin);
    const TermScores piece = score_images(*reward_, decoder_(state.narrow(0, begin, n)),
                                          labels.defined() ? labels.narrow(0, begin, n) : labels);
    out.score.narrow(0, begin, n).copy_(piece.score);
    out.terms.narrow(0, begin, n).copy_(piece.terms);
  });
  if (size > 1) all_reduce_sum({out.score, out.terms});
  require_finite_score(out.score, state);
  if (observer_) observer_(out);
  return out;
}

ScoreAndGradient StateReward::score_and_gradient(const at::Tensor& state,
                                                 const at::Tensor& labels) const {
  if (!reward_->info().has_gradient) {
    fail(ErrorKind::kConfig,
         cat("reward ", reward_->info().name, " has no gradient, this method needs one"));
  }
  const at::AutoGradMode grad(true);
  const at::Tensor input = state.detach().set_requires_grad(true);
  const at::Tensor score = score_with_graph(input, labels);
  if (!score.requires_grad()) {
    fail(ErrorKind::kConfig, cat("reward ", reward_->info().name,
                                 " has no gradient: its score is computed outside autograd"));
  }
  const at::Tensor gradient =
      torch::autograd::grad({score.sum()}, {input}, {}, false, false, true)[0];
  ScoreAndGradient out{score.detach(), gradient.defined() ? gradient : at::zeros_like(state)};
  require_finite(out.gradient, cat("gradient of reward ", reward_->info().name));
  return out;
}

std::vector<ObservedTerm> observe_terms(const StateReward& reward, const at::Tensor& states,
                                        const at::Tensor& labels) {
  const at::AutoGradMode grad(true);
  const at::Tensor images = reward.decode(states.detach()).detach().set_requires_grad(true);
  std::vector<ObservedTerm> out;
  for (const Reward* term : reward.reward().terms()) {
    ObservedTerm seen{term->info().name};
    const at::Tensor score = term->score(images, term->prepare(labels));
    require_finite(score, cat("reward ", seen.name));
    seen.varies = score.size(0) > 1 && (score != score[0]).any().item<bool>();
    seen.gradient = TermGradient::kNone;
    if (score.requires_grad()) {
      const at::Tensor gradient = torch::autograd::grad({score.sum()}, {images}, {}, false, false,
                                                        /*allow_unused=*/true)[0];
      const bool some = gradient.defined() && (gradient != 0).any().item<bool>();
      seen.gradient = some ? TermGradient::kPresent : TermGradient::kZero;
    }
    out.push_back(std::move(seen));
  }
  return out;
}

void require_varied(const at::Tensor& scores, const std::string& name) {
  if ((scores != scores[0]).any().item<bool>()) return;
  fail(ErrorKind::kConfig,
       cat("reward ", name, " is constant: every one of ", scores.size(0), " samples scores ",
           compact(scores[0].item<double>())),
       "nothing can be learned from it; check its inputs, and evaluation.base_samples when success "
       "is rare");
}

double check_reward(const StateReward& reward, const at::Tensor& states, const at::Tensor& labels,
                    const RandomStreams& streams) {
  const std::string& name = reward.reward().info().name;
  if (!reward.reward().info().has_gradient) {
    require_varied(reward.score(states, labels), name);
    return 0;
  }
  const ScoreAndGradient at_states = reward.score_and_gradient(states, labels);
  const double norm = at_states.gradient.flatten(1).norm(2, 1).mean().item<double>();
  if (norm == 0) {
    fail(ErrorKind::kConfig,
         cat("reward ", name, " is constant or its gradient is lost: the gradient is exactly zero"),
         "is its scale zero, or is it computed outside autograd?");
  }
  // Central differences along the gradient plus a random direction; the step balances rounding
  // against curvature.
  const at::Tensor random = streams.normal(Purpose::kProbe, 0, 0, 0, states.size(0),
                                           states.sizes().slice(1), states.scalar_type());
  const auto unit = [](const at::Tensor& x) {
    return x / x.flatten(1)
                   .norm(2, 1)
                   .clamp_min(1e-30)
                   .view(std::vector<std::int64_t>(1, -1))
                   .reshape([&] {
                     std::vector<std::int64_t> s(static_cast<std::size_t>(x.dim()), 1);
                     s[0] = x.size(0);
                     return s;
                   }());
  };
  const at::Tensor direction = unit(unit(at_states.gradient) + unit(random));
  const double slope_scale =
      (at_states.gradient * direction).flatten(1).sum(1).abs().mean().item<double>();
  double best = std::numeric_limits<double>::infinity();
  for (const double step : {0.3, 0.1, 0.03, 0.01}) {
    const at::Tensor difference = (reward.score(states + direction * step, labels) -
                                   reward.score(states - direction * step, labels)) /
                                  (2 * step);
    const at::Tensor error =
        (difference - (at_states.gradient * direction).flatten(1).sum(1)).abs();
    best = std::min(best, error.mean().item<double>() / slope_scale);
  }
  if (!(best < 0.1)) {
    fail(ErrorKind::kConfig,
         cat("the gradient of reward ", name, " disagrees with finite differences by ",
             fixed(100 * best, 1), " %"),
         "its gradient is wrong or it is not smooth");
  }
  return best;
}

}  // namespace tiltflow
