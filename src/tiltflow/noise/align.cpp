#include "tiltflow/noise/align.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "tiltflow/base/error.h"
#include "tiltflow/base/signals.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/tensor/precision.h"

namespace tiltflow {
namespace {

// Noise of any shape behind one set of maps.
class NoiseMap {
 public:
  NoiseMap(const PatchConfig& c, const std::vector<std::int64_t>& shape)
      : per_sample_(c.per_sample) {
    if (shape.size() == 3) {
      patches_ = std::make_unique<PatchMap>(c, shape);
      return;
    }
    std::int64_t d = 1;
    for (const std::int64_t n : shape) d *= n;
    if (c.groups != 1) {
      fail(ErrorKind::kConfig, "align.groups has no effect on noise that is a vector");
    }
    vector_ = make_orthogonal_map(c.map, d);
  }
  at::Tensor initial(const RandomStreams& streams, std::int64_t n) const {
    return patches_ ? patches_->initial(streams, 0, n)
                    : vector_->initial(streams, 0, per_sample_ ? n : 1);
  }
  at::Tensor matrices(const at::Tensor& raw) const {
    return (patches_ ? patches_->map() : *vector_).matrix(raw);
  }
  at::Tensor apply(const at::Tensor& q, const at::Tensor& eps) const {  // q [maps, D, D]
    if (patches_) return patches_->apply_matrices(q, eps);
    const at::Tensor rows = per_sample_ ? eps.flatten(1).unsqueeze(1) : eps.flatten(1).unsqueeze(0);
    return at::matmul(rows, q.transpose(1, 2)).view(eps.sizes());
  }

 private:
  bool per_sample_;
  std::unique_ptr<PatchMap> patches_;
  std::unique_ptr<OrthogonalMap> vector_;
};

}  // namespace

void bind(Fields& f, AlignConfig& c) {
  f.value("map", c.patches.map.kind,
          "orthogonal map: expm, cayley, householder, block, givens or butterfly",
          one_of(orthogonal_kinds()));
  f.value("reflections", c.patches.map.reflections, "householder: number of reflections",
          at_least_integer(1));
  f.value("blocks", c.patches.map.blocks, "block: number of blocks", at_least_integer(1));
  f.value("layers", c.patches.map.layers, "givens: layers of plane rotations; 0 = all",
          at_least_integer(0));
  f.value("patch", c.patches.patch, "noise [C, H, W]: side of a patch", at_least_integer(1));
  f.value("groups", c.patches.groups, "noise [C, H, W]: groups of patches with a map of their own",
          at_least_integer(1));
  f.value("per_sample", c.patches.per_sample,
          "every sample has maps of its own; false: one for all, and new noise stays Gaussian");
  f.value("optimizer", c.optimizer,
          "riemannian (an angle per step) or adamw (on the map's parameters)",
          one_of({"riemannian", "adamw"}));
  f.value("steps", c.steps, "steps", at_least_integer(1));
  f.value("batch", c.batch, "samples that are aligned together", at_least_integer(1));
  f.value("learning_rate", c.learning_rate, "adamw: step size", positive());
  f.value("angle", c.angle,
          "riemannian: largest rotation of the first step in radians; falls along a cosine",
          between(1e-6, 3.14159));
  f.value("l2", c.l2, "weight of mean (z - eps)^2", at_least(0));
  f.value("labels", c.labels,
          "classes, one alignment each; empty: one alignment with all classes in turn");
  f.value("fresh", c.fresh, "new noises on which a shared map is scored at the end",
          at_least_integer(0));
}

namespace {

void require_alignable(const Generator& g, const Reward& reward, std::int64_t label) {
  if (!reward.info().has_gradient) {
    fail(ErrorKind::kConfig,
         cat("reward ", reward.info().name, " has no gradient; aligning noise needs one"));
  }
  if (label < -1) fail(ErrorKind::kConfig, cat("align.labels: ", label, " is no class"));
  if (label >= g.classes() && label >= 0) {
    fail(ErrorKind::kConfig,
         cat("align.labels: class ", label, ", the generator has ", g.classes()));
  }
}

at::Tensor labels_of(const Generator& g, std::int64_t label, std::int64_t n) {
  if (g.classes() == 0) return at::Tensor();
  return label >= 0 ? at::full({n}, label, at::kLong)
                    : at::remainder(at::arange(n, at::kLong), g.classes());
}

at::Tensor scores_of(const Generator& g, const Reward& r, const at::Tensor& z,
                     const at::Tensor& labels) {
  const at::Tensor scores = r.score((g.generate(z, labels) + 1) / 2, r.prepare(labels));
  require_finite(scores, "the reward");
  return scores;
}

// What the steps move: the map's parameters under adamw, its matrices under riemannian.
class MapSteps {
 public:
  MapSteps(const AlignConfig& c, const NoiseMap& map, const RandomStreams& streams)
      : config_(c), map_(map), adam_(c.optimizer == "adamw") {
    point_ = map.initial(streams, c.batch);
    first_ = at::zeros_like(point_);
    second_ = at::zeros_like(point_);
    if (!adam_) point_ = map.matrices(point_);
  }
  at::Tensor leaf() const { return point_.detach().set_requires_grad(true); }
  at::Tensor matrices(const at::Tensor& leaf) const { return adam_ ? map_.matrices(leaf) : leaf; }

  void step(const at::Tensor& gradient, std::int64_t k) {
    if (!adam_) {
      point_ = riemannian_step(point_, gradient,
                               config_.angle * 0.5 *
                                   (1 + std::cos(std::numbers::pi * static_cast<double>(k) /
                                                 static_cast<double>(config_.steps))));
      return;
    }
    first_ = 0.9 * first_ + 0.1 * gradient;
    second_ = 0.999 * second_ + 0.001 * gradient.square();
    const double n = static_cast<double>(k + 1);
    point_ = point_ - config_.learning_rate * (first_ / (1 - std::pow(0.9, n))) /
                          ((second_ / (1 - std::pow(0.999, n))).sqrt() + 1e-8);
  }

 private:
  const AlignConfig& config_;
  const NoiseMap& map_;
  bool adam_;
  at::Tensor point_, first_, second_;
};

// The shared map on noise it was not fitted to.
void score_fresh_noise(const Generator& g, const Reward& reward, const NoiseMap& map,
                       const AlignConfig& c, std::int64_t label, const RandomStreams& streams,
                       AlignResult& out) {
  const at::NoGradGuard no_grad;
  const at::Tensor noise = streams.normal(Purpose::kExact, 0, static_cast<std::uint32_t>(label + 1),
                                          0, c.fresh, g.noise_shape());
  const at::Tensor labels = labels_of(g, label, c.fresh);
  const at::Tensor base = scores_of(g, reward, noise, labels);
  const at::Tensor aligned = scores_of(g, reward, map.apply(out.maps, noise), labels);
  const double root = std::sqrt(static_cast<double>(c.fresh));
  out.fresh_base = base.mean().item<double>();
  out.fresh_aligned = aligned.mean().item<double>();
  out.has_fresh = true;
  if (c.fresh > 1) {
    out.fresh_base_se = base.std().item<double>() / root;
    out.fresh_aligned_se = aligned.std().item<double>() / root;
  }
}

}  // namespace

AlignResult align_noise(const Generator& g, const Reward& reward, const Reward* held_out,
                        const AlignConfig& c, std::int64_t label, const RandomStreams& streams) {
  require_alignable(g, reward, label);
  const NoiseMap map(c.patches, g.noise_shape());
  AlignResult out;
  out.labels = labels_of(g, label, c.batch);
  out.eps = streams.normal(Purpose::kPrior, 0, static_cast<std::uint32_t>(label + 1), 0, c.batch,
                           g.noise_shape());
  MapSteps steps(c, map, streams);
  for (std::int64_t k = 0; k <= c.steps; ++k) {
    check_stop();
    const at::AutoGradMode grad(true);
    const at::Tensor leaf = steps.leaf();
    const at::Tensor matrices = steps.matrices(leaf);
    const at::Tensor z = map.apply(matrices, out.eps);
    const at::Tensor scores = scores_of(g, reward, z, out.labels);
    const at::Tensor drift = (z - out.eps).square().flatten(1).mean(1);
    if (!scores.requires_grad()) {
      fail(ErrorKind::kConfig,
           cat("reward ", reward.info().name, " has no gradient; aligning noise needs one"),
           "its score is computed outside autograd");
    }
    const double mean = scores.mean().item<double>();
    if (out.reward.empty() || mean > out.reward[static_cast<std::size_t>(out.best_step)]) {
      out.best_step = k;
      out.noise = z.detach();
      out.maps = matrices.detach();
    }
    out.reward.push_back(mean);
    out.drift.push_back(drift.mean().item<double>());
    if (held_out) {
      const at::NoGradGuard no_grad;
      out.held_out.push_back(scores_of(g, *held_out, z.detach(), out.labels).mean().item<double>());
    }
    if (k == c.steps) break;
    const at::Tensor gradient = torch::autograd::grad({(c.l2 * drift - scores).mean()}, {leaf})[0];
    require_finite(gradient, "the gradient of the alignment");
    steps.step(gradient, k);
  }
  if (!c.patches.per_sample && c.fresh > 0) {
    score_fresh_noise(g, reward, map, c, label, streams, out);
  }
  return out;
}

nlohmann::ordered_json to_json(const AlignResult& r) {
  nlohmann::ordered_json out{{"start", r.reward.front()},
                             {"best", r.reward[static_cast<std::size_t>(r.best_step)]},
                             {"best_step", r.best_step},
                             {"last", r.reward.back()},
                             {"drift", r.drift[static_cast<std::size_t>(r.best_step)]},
                             {"history", r.reward},
                             {"drift_history", r.drift}};
  if (!r.held_out.empty()) {
    out["held_out"] = {{"start", r.held_out.front()},
                       {"best", r.held_out[static_cast<std::size_t>(r.best_step)]},
                       {"last", r.held_out.back()},
                       {"history", r.held_out}};
  }
  if (r.has_fresh) {
    out["fresh"] = {{"base", r.fresh_base},
                    {"base_se", r.fresh_base_se},
                    {"aligned", r.fresh_aligned},
                    {"aligned_se", r.fresh_aligned_se}};
  }
  return out;
}

}  // namespace tiltflow
