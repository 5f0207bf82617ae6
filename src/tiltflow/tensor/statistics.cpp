#include "tiltflow/tensor/statistics.h"

#include <algorithm>
#include <cmath>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {

Estimate mean_estimate(const at::Tensor& x) {
  const at::Tensor values = x.to(at::kDouble);
  return {values.mean().item<double>(),
          values.size(0) > 1
              ? values.std().item<double>() / std::sqrt(static_cast<double>(values.size(0)))
              : 0};
}

Estimate estimate_over_seeds(const std::vector<at::Tensor>& values) {
  if (values.size() < 2) return mean_estimate(values.at(0));
  std::vector<double> means;
  for (const at::Tensor& of_one_seed : values) means.push_back(of_one_seed.mean().item<double>());
  const Estimate of_means = mean_estimate(at::tensor(means, at::kDouble));
  const Estimate pooled = mean_estimate(at::cat(values));
  return {of_means.value, std::max(of_means.se, pooled.se)};
}

std::vector<Estimate> jackknife(std::int64_t first, std::int64_t second,
                                const PairedStatistic& statistic, int groups) {
  const at::NoGradGuard no_grad;
  const at::Tensor all_first = at::arange(first);
  const at::Tensor all_second = at::arange(second);
  const std::vector<double> full = statistic(all_first, all_second);
  std::vector<double> sum(full.size(), 0), square(full.size(), 0);
  for (int g = 0; g < groups; ++g) {
    const auto rest = [&](const at::Tensor& all) {
      return all.index({at::remainder(all, groups) != g});
    };
    const std::vector<double> values = statistic(rest(all_first), rest(all_second));
    for (std::size_t i = 0; i < values.size(); ++i) {
      sum[i] += values[i];
      square[i] += values[i] * values[i];
    }
  }
  std::vector<Estimate> out;
  for (std::size_t i = 0; i < full.size(); ++i) {
    const double mean = sum[i] / groups;
    const double variance = std::max(0.0, square[i] / groups - mean * mean);
    out.push_back({full[i], std::sqrt((groups - 1) * variance)});
  }
  return out;
}

FeatureMoments feature_moments(const at::Tensor& features) {
  const at::Tensor f = features.to(at::kDouble);
  return {f.mean(0), at::cov(f.t()), static_cast<double>(f.size(0))};
}

double frechet_distance(const FeatureMoments& a, const FeatureMoments& b) {
  if (a.mean.numel() != b.mean.numel()) {
    fail(ErrorKind::kBadFile,
         cat("statistics of ", a.mean.numel(), " and of ", b.mean.numel(),
             " features cannot be compared"),
         "they were made with different networks (--features)");
  }
  // tr (A B)^{1/2} = sum of the roots of the eigenvalues of A^{1/2} B A^{1/2}, symmetric
  const auto [values, vectors] = at::linalg_eigh(a.covariance);
  const at::Tensor root = at::matmul(vectors * values.clamp_min(0).sqrt(), vectors.t());
  const at::Tensor inner = at::matmul(at::matmul(root, b.covariance), root);
  const double cross =
      at::linalg_eigvalsh(0.5 * (inner + inner.t())).clamp_min(0).sqrt().sum().item<double>();
  return (a.mean - b.mean).square().sum().item<double>() + a.covariance.trace().item<double>() +
         b.covariance.trace().item<double>() - 2 * cross;
}

double sliced_wasserstein(const at::Tensor& a, const at::Tensor& b, const at::Tensor& directions) {
  const at::Tensor unit = directions / directions.norm(2, {1}, true);  // [D, d]
  const at::Tensor left = std::get<0>(at::matmul(a, unit.t()).sort(0));
  const at::Tensor right = std::get<0>(at::matmul(b, unit.t()).sort(0));
  return std::sqrt((left - right).square().mean().item<double>());
}

}  // namespace tiltflow
