#include "tiltflow/noise/patches.h"

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/tensor/parameters.h"

namespace tiltflow {

at::Tensor to_patches(const at::Tensor& x, std::int64_t p) {
  const std::int64_t n = x.size(0);
  const std::int64_t c = x.size(1);
  const std::int64_t h = x.size(2);
  const std::int64_t w = x.size(3);
  if (p < 1 || h % p || w % p) {
    fail(ErrorKind::kConfig, cat("patches of ", p, " x ", p, " do not tile ", h, " x ", w));
  }
  return x.reshape({n, c, h / p, p, w / p, p})
      .permute({0, 2, 4, 1, 3, 5})
      .reshape({n, (h / p) * (w / p), c * p * p});
}

at::Tensor from_patches(const at::Tensor& patches, std::int64_t p, at::IntArrayRef s) {
  const std::int64_t n = patches.size(0);
  return patches.reshape({n, s[1] / p, s[2] / p, s[0], p, p})
      .permute({0, 3, 1, 4, 2, 5})
      .reshape({n, s[0], s[1], s[2]});
}

PatchMap::PatchMap(const PatchConfig& config, const std::vector<std::int64_t>& shape)
    : config_(config), shape_(shape) {
  if (shape.size() != 3) {
    fail(ErrorKind::kConfig,
         cat("patch maps need noise [C, H, W], this one is ", shape_text(shape)));
  }
  const std::int64_t p = config.patch;
  if (p < 1 || shape[1] % p || shape[2] % p) {
    fail(ErrorKind::kConfig,
         cat("patches of ", p, " x ", p, " do not tile ", shape[1], " x ", shape[2]));
  }
  patches_ = (shape[1] / p) * (shape[2] / p);
  dimension_ = shape[0] * p * p;
  if (config.groups < 1 || patches_ % config.groups) {
    fail(ErrorKind::kConfig, cat(config.groups, " groups do not divide ", patches_, " patches"));
  }
  map_ = make_orthogonal_map(config.map, dimension_);
}

at::Tensor PatchMap::initial(const RandomStreams& streams, std::int64_t first,
                             std::int64_t samples) const {
  return map_->initial(streams, config_.per_sample ? first * config_.groups : 0, maps(samples));
}

at::Tensor PatchMap::to_rows(const at::Tensor& x) const {
  const std::int64_t n = x.size(0);
  const std::int64_t g = config_.groups;
  const std::int64_t per = patches_ / g;
  const at::Tensor rows = to_patches(x, config_.patch).view({n, g, per, dimension_});
  return config_.per_sample ? rows.reshape({n * g, per, dimension_})
                            : rows.transpose(0, 1).reshape({g, n * per, dimension_});
}

at::Tensor PatchMap::from_rows(const at::Tensor& rows, std::int64_t n) const {
  const std::int64_t g = config_.groups;
  const std::int64_t per = patches_ / g;
  const at::Tensor ordered =
      config_.per_sample
          ? rows.reshape({n, patches_, dimension_})
          : rows.view({g, n, per, dimension_}).transpose(0, 1).reshape({n, patches_, dimension_});
  return from_patches(ordered, config_.patch, shape_);
}

at::Tensor PatchMap::apply(const at::Tensor& raw, const at::Tensor& eps) const {
  return from_rows(map_->apply(raw, to_rows(eps)), eps.size(0));
}
at::Tensor PatchMap::apply_transposed(const at::Tensor& raw, const at::Tensor& x) const {
  return from_rows(map_->apply_transposed(raw, to_rows(x)), x.size(0));
}
at::Tensor PatchMap::apply_matrices(const at::Tensor& q, const at::Tensor& eps) const {
  return from_rows(at::matmul(to_rows(eps), q.transpose(1, 2)), eps.size(0));
}

}  // namespace tiltflow
