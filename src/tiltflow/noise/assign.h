// Assigned noise: for every target image the noise from which a one-step generator makes it, found
// by gradients over rotations of a base noise, by optimal transport from a pool of independent
// noises, or both. All targets at once, each on its own: the result of a target does not depend on
// what it is computed beside.
#pragma once

#include <memory>
#include <optional>

#include <functional>
#include <string>

#include "tiltflow/config/fields.h"
#include "tiltflow/models/generator/generator.h"
#include "tiltflow/noise/orthogonal.h"

namespace tiltflow {

// Weights of the loss of one target: image terms are means over its entries, noise terms means over
// the noise.
struct AssignLossConfig {
  double mse = 1;
  double l1 = 0;
  double feature = 0;
  double drift = 0;  // mean (z - eps)^2: stay near the base noise
  double prior = 0;  // (mean z^2 - 1)^2 + (mean z)^2, the reference's; the first part is constant
                     // on rotations and acts for map = free
};

struct AssignConfig {
  std::string map = "sphere";   // sphere (one direction per target), free (any vector), or a full
                                // rotation: expm, cayley, householder, block, givens, butterfly
  OrthogonalConfig rotation;    // details of full rotations
  std::string init = "random";  // random, transport (exact linear assignment), sinkhorn
  std::string optimizer = "lbfgs";  // or adam
  std::int64_t steps = 60;          // gradient steps; 0 = only choose among the starts
  std::int64_t screen = 16;         // random starts whose loss is looked at ...
  std::int64_t restarts = 2;        // ... and how many of the best are refined
  double learning_rate = 0.2;       // adam: falling to zero along a cosine
  double max_angle = 0;  // largest angle between z and eps in degrees (sphere); 0 = no bound
  std::int64_t patience =
      0;  // a row stops after so many steps without an improvement of 0.1 %; 0 = never
  std::int64_t chunk = 128;   // targets at a time
  std::int64_t tile = 32;     // rows in one network call; every call has exactly so many
  std::int64_t block = 2048;  // transport: targets of one class matched together
  double pool = 1;  // transport: noises per target; 1 keeps the prior exactly, more choose
  AssignLossConfig loss;
};
void bind(Fields& f, AssignConfig& c);
void validate(const AssignConfig& c);  // throws kConfig

struct AssignTargets {
  at::Tensor images;  // [N, sample...] in [-1, 1]
  at::Tensor labels;  // [N] int64 or undefined
  at::Tensor ids;     // [N] int64: keys of the random numbers
};
struct AssignResult {
  at::Tensor base, noise;       // [N, d] fp32: eps and z
  at::Tensor loss, start_loss;  // [N] double
  std::int64_t forwards = 0;
  std::int64_t backwards = 0;  // network rows
};

using FeatureFunction =
    std::function<at::Tensor(const at::Tensor& images)>;  // [N, ...] in [0, 1] -> [N, F]

class Assigner {
 public:
  // `features` may be empty when the feature weight is 0.
  Assigner(const Generator& generator, AssignConfig config, RandomStreams streams,
           FeatureFunction features = {});

  // Per-row loss of given noises, [M]; differentiable in z.
  at::Tensor losses(const at::Tensor& z, const at::Tensor& eps, const AssignTargets& targets) const;
  // The same without a graph, in tiles on all cores: [N] double.
  at::Tensor evaluate(const at::Tensor& z, const at::Tensor& eps,
                      const AssignTargets& targets) const;

  // `round` keys the random starts. With `base` and `warm` [N, d] the search continues from there
  // and never gets worse; with `base` alone it begins at these noises. The loss of a target whose
  // losses are never finite is infinite.
  AssignResult assign(const AssignTargets& targets, std::uint32_t round,
                      const at::Tensor& base = {}, const at::Tensor& warm = {}) const;
  // Base noises for all targets of a set by optimal transport, [N, d]: init = transport or
  // sinkhorn, in blocks of one class.
  at::Tensor transport(const AssignTargets& targets, std::uint32_t round) const;

 private:
  struct Rows;
  struct Search;
  at::Tensor map(const at::Tensor& parameters, const at::Tensor& eps) const;
  Rows given_starts(const AssignTargets& targets, const at::Tensor& base, const at::Tensor& warm,
                    AssignResult& out) const;
  Rows random_starts(const AssignTargets& targets, std::uint32_t round, AssignResult& out) const;
  at::Tensor pool_images(const at::Tensor& pool, std::optional<std::int64_t> label) const;
  at::Tensor pair_costs(const at::Tensor& wanted, const at::Tensor& images) const;

  const Generator& generator_;
  AssignConfig config_;
  RandomStreams streams_;
  FeatureFunction features_;
  std::int64_t size_;
  std::unique_ptr<OrthogonalMap> rotation_;
};

}  // namespace tiltflow
