#include "tiltflow/reward/importance.h"

#include <cmath>
#include <limits>

#include "tiltflow/tensor/aten.h"

namespace tiltflow {

namespace {

// `weights`: log w of one condition, [n] fp64.
ConditionNormaliser normaliser(std::int64_t label, const at::Tensor& weights) {
  ConditionNormaliser out;
  out.label = label;
  out.samples = weights.size(0);
  const double n = static_cast<double>(out.samples);
  const double top = weights.max().item<double>();
  const at::Tensor w = (weights - top).exp();
  const double mean = w.mean().item<double>();
  out.log_z = top + std::log(mean);
  out.log_z_se = n > 1 ? std::sqrt(w.var().item<double>() / n) / mean
                       : std::numeric_limits<double>::infinity();
  return out;
}

}  // namespace

ImportanceWeights importance_weights(const at::Tensor& rewards, const at::Tensor& labels) {
  const at::Tensor r = rewards.to(at::kDouble);
  const at::Tensor keys = labels.defined() ? labels : at::full({r.size(0)}, -1, at::kLong);
  ImportanceWeights out;
  out.log_weights = at::empty_like(r);
  double variance = 0;
  const at::Tensor distinct = std::get<0>(at::_unique(keys));
  for (std::int64_t i = 0; i < distinct.size(0); ++i) {
    const at::Tensor members = keys.eq(distinct[i]).nonzero().flatten();
    const at::Tensor mine = r.index_select(0, members);
    const ConditionNormaliser one = normaliser(distinct[i].item<std::int64_t>(), mine);
    const double share = static_cast<double>(one.samples) / static_cast<double>(r.size(0));
    out.log_z += share * one.log_z;
    variance += share * share * one.log_z_se * one.log_z_se;
    out.log_weights.index_copy_(0, members, mine - one.log_z);
    out.conditions.push_back(one);
  }
  out.log_z_se = std::sqrt(variance);
  out.ess = 1 / out.log_weights.softmax(0).square().sum().item<double>();
  return out;
}

PathGap path_gap(const at::Tensor& rewards, const at::Tensor& log_ratio, const at::Tensor& labels) {
  const at::Tensor w = rewards.to(at::kDouble) + log_ratio.to(at::kDouble);
  const ImportanceWeights weights = importance_weights(w, labels);
  // Of one sample on log Z - E w, up to a constant.
  const at::Tensor influence = weights.log_weights.exp() - w;
  const double n = static_cast<double>(w.size(0));
  PathGap out;
  out.gap = weights.log_z - w.mean().item<double>();
  out.gap_se = std::isfinite(weights.log_z_se) ? influence.std().item<double>() / std::sqrt(n)
                                               : std::numeric_limits<double>::infinity();
  out.ess = weights.ess / n;
  return out;
}

}  // namespace tiltflow
