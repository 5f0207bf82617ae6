// Keyed random streams: every number is a pure function of (seed, purpose, step, substep, sample,
// position). A sample's noise never depends on the batch it travels in, on the number of workers or
// on what was drawn before. Generator: Philox4x32-10 (Salmon et al. 2011); normals by Box-Muller in
// single precision.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace tiltflow {

enum class Purpose : std::uint8_t {
  kPrior = 1,     // X_0
  kTransition,    // xi_k of the sampler
  kTime,          // training times
  kData,          // which training examples, in which order
  kLabel,         // class labels and label dropout
  kSubset,        // time steps that enter the loss
  kInit,          // initial weights
  kSmoothing,     // perturbations for gradient smoothing
  kAugment,       // noise on classifier inputs
  kProbe,         // directions of finite differences, projections
  kExact,         // draws from closed-form laws
  kLabelDropout,  // which samples lose their label
};

// What stands in place of a step number where no training step draws. Steps are below 2^31; every
// key above is listed here. Keys of equal value belong to verbs that never run together.
struct RunKey {
  static constexpr std::uint32_t kStartCheck = 0xffffc000u;  // two samples before a run
  static constexpr std::uint32_t kValidation = 0xffffd000u;  // pre-training: held-out loss
  static constexpr std::uint32_t kValidationPictures = 0xffffd001u;
  static constexpr std::uint32_t kHeldOutSplit = 0xffffd002u;  // which items are held out
  static constexpr std::uint32_t kComparison = 0xffffd000u;    // `compare`: all measurements
  static constexpr std::uint32_t kLawCheck = 0xffffe000u;      // the tilted-law check
  static constexpr std::uint32_t kEvaluation = 0xfffff000u;    // on the way
  static constexpr std::uint32_t kBase = 0xfffff001u;          // base samples at the start
};

class RandomStreams {
 public:
  explicit RandomStreams(std::uint64_t seed) : seed_(seed) {}
  std::uint64_t seed() const { return seed_; }

  // Samples first, first+1, ..., first+n-1; each of `shape`. [n, shape...], fp32 (or `dtype`).
  at::Tensor normal(Purpose purpose, std::uint32_t step, std::uint32_t substep, std::int64_t first,
                    std::int64_t n, at::IntArrayRef shape, at::ScalarType dtype = at::kFloat) const;
  at::Tensor uniform(Purpose purpose, std::uint32_t step, std::int64_t first, std::int64_t n,
                     at::IntArrayRef shape = {},
                     at::ScalarType dtype = at::kFloat) const;  // [0, 1)
  at::Tensor integers(Purpose purpose, std::uint32_t step, std::int64_t first, std::int64_t n,
                      std::int64_t bound) const;  // [n] int64 in [0, bound)
  std::vector<std::int64_t> permutation(Purpose purpose, std::uint32_t step,
                                        std::int64_t n) const;  // of 0..n-1
  // `count` distinct values of [low, high), ascending.
  std::vector<std::int64_t> choose(Purpose purpose, std::uint32_t step, std::int64_t low,
                                   std::int64_t high, std::int64_t count) const;

 private:
  std::uint64_t seed_;
};

}  // namespace tiltflow
