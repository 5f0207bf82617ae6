// Importance weights that turn base samples into samples of p*: w = exp(r)/Z. With labels, every
// label has its own law and its own Z, so that labels keep their shares.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace tiltflow {

// log Z of one condition's law.
struct ConditionNormaliser {
  std::int64_t label = -1;  // -1: no labels
  std::int64_t samples = 0;
  double log_z = 0;
  double log_z_se = 0;  // delta method; infinite for a single sample, which says nothing of it
};

struct ImportanceWeights {
  at::Tensor log_weights;                       // [N] fp64: r_i - log Z(label_i), up to a constant
  double log_z = 0;                             // mean of log Z over the labels, by their shares
  double log_z_se = 0;                          // its standard error
  double ess = 0;                               // effective sample size
  std::vector<ConditionNormaliser> conditions;  // in the order of the labels
};

// rewards [N], labels [N] or undefined.
ImportanceWeights importance_weights(const at::Tensor& rewards, const at::Tensor& labels);

// KL(tuned || p*) over whole paths, from paths of the tuned model alone: w = r + log_ratio, gap =
// log E exp(w) - E w. As the tuned law nears p*, w becomes constant and the error vanishes, unlike
// with log Z from base samples; but a mode of p* that the tuned model never visits stays unseen.
// All arguments [N]; labels may be undefined.
struct PathGap {
  double gap = 0;
  double gap_se = 0;  // nats; delta method
  double ess = 0;     // of the weights exp(w), as a share of N
};
PathGap path_gap(const at::Tensor& rewards, const at::Tensor& log_ratio, const at::Tensor& labels);

}  // namespace tiltflow
