// Importance weights that turn base samples into samples of p*: w = exp(r)/Z. With labels, every label has its own law and its
// own Z, so that labels keep their shares.
#pragma once

#include <ATen/core/Tensor.h>

namespace tiltflow {

struct ImportanceWeights {
  at::Tensor log_weights;    // [N] fp64: r_i - log Z(label_i), up to a constant
  double log_z = 0;          // mean of log Z over the labels
  double log_z_se = 0;       // standard error (delta method)
  double ess = 0;            // effective sample size
};

// rewards [N], labels [N] or undefined.
ImportanceWeights importance_weights(const at::Tensor& rewards, const at::Tensor& labels);

}  // namespace tiltflow
