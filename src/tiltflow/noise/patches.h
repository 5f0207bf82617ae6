// Orthogonal maps on patches of a latent: non-overlapping p x p patches, row-major, each flattened
// in the order (channel, row, column) to D = C p^2 numbers. One map for all patches, one per group
// of patches, or own maps per sample.
#pragma once

#include <memory>

#include "tiltflow/noise/orthogonal.h"

namespace tiltflow {

at::Tensor to_patches(
    const at::Tensor& x,
    std::int64_t p);  // [N, C, H, W] -> [N, P, C p p]; throws kConfig when p does not divide
at::Tensor from_patches(const at::Tensor& patches, std::int64_t p,
                        at::IntArrayRef sample_shape);  // the inverse; sample_shape [C, H, W]

struct PatchConfig {
  OrthogonalConfig map;
  std::int64_t patch = 2;
  std::int64_t groups = 1;  // consecutive patches share a map; must divide the number of patches
  bool per_sample = false;  // maps are not shared between samples
};

class PatchMap {
 public:
  PatchMap(const PatchConfig& config, const std::vector<std::int64_t>& sample_shape);
  const OrthogonalMap& map() const { return *map_; }
  std::int64_t maps(std::int64_t samples) const {
    return config_.groups * (config_.per_sample ? samples : 1);
  }
  at::Tensor initial(const RandomStreams& streams, std::int64_t first,
                     std::int64_t samples) const;  // [maps(samples), parameters...]
  at::Tensor apply(const at::Tensor& raw, const at::Tensor& eps) const;  // [N, C, H, W] -> the same
  at::Tensor apply_transposed(const at::Tensor& raw, const at::Tensor& x) const;
  // With matrices instead of parameters: q [maps, D, D].
  at::Tensor apply_matrices(const at::Tensor& q, const at::Tensor& eps) const;

 private:
  at::Tensor to_rows(const at::Tensor& x) const;  // [N, C, H, W] -> [maps or groups, R, D]
  at::Tensor from_rows(const at::Tensor& rows, std::int64_t n) const;
  PatchConfig config_;
  std::vector<std::int64_t> shape_;
  std::int64_t patches_, dimension_;
  std::unique_ptr<OrthogonalMap> map_;
};

}  // namespace tiltflow
