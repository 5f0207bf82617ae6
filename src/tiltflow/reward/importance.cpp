#include "tiltflow/reward/importance.h"

#include <cmath>

#include "tiltflow/tensor/aten.h"

namespace tiltflow {

ImportanceWeights importance_weights(const at::Tensor& rewards, const at::Tensor& labels) {
  const at::Tensor r = rewards.to(at::kDouble), keys = labels.defined() ? labels : at::zeros({r.size(0)}, at::kLong);
  ImportanceWeights out;
  out.log_weights = at::empty_like(r);
  double variance = 0;
  const at::Tensor distinct = std::get<0>(at::_unique(keys));
  for (std::int64_t i = 0; i < distinct.size(0); ++i) {
    const at::Tensor members = keys.eq(distinct[i]).nonzero().flatten(), mine = r.index_select(0, members);
    const double n = static_cast<double>(mine.size(0)), share = n / static_cast<double>(r.size(0)), top = mine.max().item<double>();
    const at::Tensor w = (mine - top).exp();
    const double mean = w.mean().item<double>(), log_z = top + std::log(mean);
    out.log_z += share * log_z;
    if (n > 1) variance += share * share * w.var().item<double>() / (n * mean * mean);
    out.log_weights.index_copy_(0, members, mine - log_z);
  }
  out.log_z_se = std::sqrt(variance);
  out.ess = 1 / out.log_weights.softmax(0).square().sum().item<double>();
  return out;
}

}  // namespace tiltflow
