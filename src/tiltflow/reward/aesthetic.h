// LAION's aesthetic score: a linear head on the normalised image embedding of CLIP ViT-L/14
// (improved-aesthetic-predictor).
#pragma once

#include <filesystem>

#include "tiltflow/reward/reward.h"

namespace tiltflow {

// Head tensors layers.{0,2,4,6,7}.{weight,bias}; five linear layers without activations, folded
// into one vector and a number (in double).
class AestheticHead {
 public:
  explicit AestheticHead(const std::filesystem::path& file);  // throws kBadFile
  // Embeddings [N, d], of any length -> scores [N]. Differentiable, through the normalisation too.
  at::Tensor score(const at::Tensor& embeddings) const;
  std::int64_t width() const { return weight_.size(1); }
  const at::Tensor& weight() const { return weight_; }  // [1, d]
  double bias() const { return bias_; }

 private:
  at::Tensor weight_;
  double bias_ = 0;
};

// Needs term.clip and term.head. Throws kConfig when they do not fit each other.
std::shared_ptr<const Reward> make_aesthetic(const RewardTerm& term);

}  // namespace tiltflow
