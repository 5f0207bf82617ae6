#include "tiltflow/reward/importance.h"

#include <cmath>

#include "tiltflow/tensor/aten.h"

namespace tiltflow {

ImportanceWeights importance_weights(const at::Tensor& rewards, const at::Tensor& labels) {
  const at::Tensor r = rewards.to(at::kDouble);
  const at::Tensor keys = labels.defined() ? labels : at::zeros({r.size(0)}, at::kLong);
  ImportanceWeights out;
  out.log_weights = at::empty_like(r);
  double variance = 0;
  const at::Tensor distinct = std::get<0>(at::_unique(keys));
  for (std::int64_t i = 0; i < distinct.size(0); ++i) {
    const at::Tensor members = keys.eq(distinct[i]).nonzero().flatten();
    const at::Tensor mine = r.index_select(0, members);
    const double n = static_cast<double>(mine.size(0));
    const double share = n / static_cast<double>(r.size(0));
    const double top = mine.max().item<double>();
    const at::Tensor w = (mine - top).exp();
    const double mean = w.mean().item<double>();
    const double log_z = top + std::log(mean);
    out.log_z += share * log_z;
    if (n > 1) variance += share * share * w.var().item<double>() / (n * mean * mean);
    out.log_weights.index_copy_(0, members, mine - log_z);
  }
  out.log_z_se = std::sqrt(variance);
  out.ess = 1 / out.log_weights.softmax(0).square().sum().item<double>();
  return out;
}

PathGap path_gap(const at::Tensor& rewards, const at::Tensor& log_ratio, const at::Tensor& labels) {
  const at::Tensor w = rewards.to(at::kDouble) + log_ratio.to(at::kDouble);
  const ImportanceWeights weights = importance_weights(w, labels);
  const at::Tensor influence =
      weights.log_weights.exp() - w;  // of one sample on log Z - E w, up to a constant
  const double n = static_cast<double>(w.size(0));
  return {weights.log_z - w.mean().item<double>(),
          w.size(0) > 1 ? influence.std().item<double>() / std::sqrt(n) : 0, weights.ess / n};
}

}  // namespace tiltflow
