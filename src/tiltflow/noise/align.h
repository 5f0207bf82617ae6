// Test-time alignment: the noise of a one-step generator is turned, not changed in law, until a
// reward is high. One rotation is shared by all samples (the noise stays exactly Gaussian for new
// draws), or every sample has its own (selection: see diagnostics).
#pragma once

#include <nlohmann/json.hpp>
#include <vector>

#include "tiltflow/models/generator/generator.h"
#include "tiltflow/noise/diagnostics.h"
#include "tiltflow/noise/patches.h"
#include "tiltflow/reward/reward.h"

namespace tiltflow {

struct AlignConfig {
  PatchConfig patches;  // patch size and groups: noise [C, H, W]; vectors are turned whole
  std::string optimizer = "riemannian";  // riemannian: geodesic steps with an angle budget; adamw:
                                         // on the map's raw parameters
  std::int64_t steps = 30;
  std::int64_t batch = 16;
  double learning_rate = 5e-4;  // adamw
  double angle =
      0.1;  // riemannian: largest rotation of the first step in radians, falling along a cosine
  double l2 = 1e-3;                  // weight of mean (z - eps)^2 in unit-variance noise
  std::vector<std::int64_t> labels;  // one alignment for each; empty: one with all classes in turn
  std::int64_t fresh = 64;           // new noises on which a shared map is scored at the end
};
void bind(Fields& f, AlignConfig& c);

struct AlignResult {
  at::Tensor eps, noise;  // [B, noise...]: base noise, and turned at the best step
  at::Tensor maps;        // [maps, D, D] at the best step
  at::Tensor labels;      // [B] or undefined
  std::vector<double> reward, held_out,
      drift;  // per step, before its update, and once after the last
  std::int64_t best_step = 0;
  double fresh_base = 0;
  double fresh_base_se = 0;
  double fresh_aligned = 0;
  double fresh_aligned_se = 0;  // of a shared map, on new noise: same draws with and without
  bool has_fresh = false;
};
// `held_out` may be null: a reward that is watched and never optimised. Per step one call of
// generator and reward, forward and backward. Throws kConfig for rewards without gradient,
// kNonFinite.
AlignResult align_noise(const Generator& generator, const Reward& reward, const Reward* held_out,
                        const AlignConfig& config, std::int64_t label,
                        const RandomStreams& streams);
nlohmann::ordered_json to_json(const AlignResult& r);

}  // namespace tiltflow
