#include "tiltflow/noise/assign.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/noise/row_optimizer.h"
#include "tiltflow/noise/transport.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/tensor/parallel.h"

namespace tiltflow {
namespace {

std::vector<std::string> assign_maps() {
  std::vector<std::string> names{"sphere", "free"};
  names.insert(names.end(), orthogonal_kinds().begin(), orthogonal_kinds().end());
  return names;
}

AssignTargets select(const AssignTargets& t, const at::Tensor& index) {
  return {t.images.index_select(0, index),
          t.labels.defined() ? t.labels.index_select(0, index) : at::Tensor(),
          t.ids.index_select(0, index)};
}

std::vector<double> numbers_of(const at::Tensor& row) {
  const at::Tensor x = row.to(at::kDouble).contiguous();
  return {x.data_ptr<double>(), x.data_ptr<double>() + x.numel()};
}

// Indices [begin, end) of `index`, filled up to `size` with the first of them: network calls of one
// size give results that do not depend on how many rows are left.
at::Tensor tile_of(const at::Tensor& index, std::int64_t begin, std::int64_t size) {
  const std::int64_t n = std::min(size, index.size(0) - begin);
  const at::Tensor part = index.narrow(0, begin, n);
  return n == size ? part : at::cat({part, part.narrow(0, 0, 1).expand({size - n})});
}

// Onto the sphere of eps's length, then towards eps until the angle between them is at most `limit`
// (radians; 0: any).
Retraction sphere_around(std::vector<double> eps, double limit) {
  double length = 0;
  for (const double v : eps) length += v * v;
  length = std::sqrt(length);
  for (double& v : eps) v /= length;
  return [unit = std::move(eps), length, limit](std::vector<double>& x) {
    double norm = 0;
    double along = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      norm += x[i] * x[i];
      along += x[i] * unit[i];
    }
    norm = std::sqrt(norm);
    along /= norm;
    if (limit <= 0 || along >= std::cos(limit)) {
      for (double& v : x) v *= length / norm;
      return;
    }
    const double side = std::sqrt(std::max(1e-24, 1 - along * along));
    for (std::size_t i = 0; i < x.size(); ++i) {
      x[i] = length *
             (std::cos(limit) * unit[i] + std::sin(limit) * (x[i] / norm - along * unit[i]) / side);
    }
  };
}

}  // namespace

void bind(Fields& f, AssignConfig& c) {
  f.value("map", c.map,
          "what is searched for a target: sphere (a direction), free (any vector), or a whole "
          "rotation: expm, cayley, householder, block, givens, butterfly",
          one_of(assign_maps()));
  f.value("reflections", c.rotation.reflections, "householder: number of reflections",
          at_least_integer(1));
  f.value("blocks", c.rotation.blocks, "block: number of blocks", at_least_integer(1));
  f.value("layers", c.rotation.layers, "givens: layers of plane rotations; 0 = all",
          at_least_integer(0));
  f.value("init", c.init,
          "start: random, transport (optimal assignment of independent noises) or sinkhorn (its "
          "entropic approximation)",
          one_of({"random", "transport", "sinkhorn"}));
  f.value("steps", c.steps, "gradient steps; 0 = choose among the starts only",
          at_least_integer(0));
  f.value("screen", c.screen, "random starts of a target that are tried", at_least_integer(1));
  f.value("restarts", c.restarts, "how many of the best are refined", at_least_integer(1));
  f.value("optimizer", c.optimizer, "lbfgs (quasi-Newton with a trust radius) or adam",
          one_of({"lbfgs", "adam"}));
  f.value("learning_rate", c.learning_rate, "adam: falls to zero along a cosine", positive());
  f.value("max_angle", c.max_angle,
          "sphere: largest angle between noise and base noise in degrees; 0 = any",
          between(0, 180));
  f.value("patience", c.patience,
          "a start is given up after so many steps without an improvement of 0.1 %; 0 = never",
          at_least_integer(0));
  f.value("chunk", c.chunk, "targets at a time; what an interruption can lose",
          at_least_integer(1));
  f.value("tile", c.tile, "rows in one network call", at_least_integer(1));
  f.value("block", c.block, "transport: targets of one class that are matched together",
          at_least_integer(1));
  f.value("pool", c.pool,
          "transport: noises per target, at most 8; with 1 the noises used are exactly the "
          "independent ones",
          between(1, 8));
  f.value("mse", c.loss.mse, "weight of the mean squared error of the image", at_least(0));
  f.value("l1", c.loss.l1, "weight of the mean absolute error", at_least(0));
  f.value("feature", c.loss.feature, "weight of the mean squared distance of features",
          at_least(0));
  f.value("drift", c.loss.drift, "weight of mean (z - eps)^2", at_least(0));
  f.value("prior", c.loss.prior,
          "weight of (mean z^2 - 1)^2 + (mean z)^2; on rotations only the second part acts",
          at_least(0));
}

void validate(const AssignConfig& c) {
  if (c.loss.mse + c.loss.l1 + c.loss.feature <= 0) {
    fail(ErrorKind::kConfig, "assign: all image terms of the loss have weight 0",
         "set assign.mse, assign.l1 or assign.feature");
  }
  if (c.max_angle > 0 && c.map != "sphere") {
    fail(ErrorKind::kConfig, cat("assign.max_angle has no effect on map = \"", c.map, "\""),
         "use map = \"sphere\"");
  }
  if (c.init != "random" && c.screen > 1 && c.screen != AssignConfig{}.screen) {
    fail(ErrorKind::kConfig,
         "assign.screen has no effect with init = \"" + c.init + "\": transport gives one start");
  }
}

// Rows in work: each belongs to a target.
struct Assigner::Rows {
  at::Tensor target;                 // [M] index into the targets
  at::Tensor eps, parameters;        // [M, d], [M, ...]
  at::Tensor best_loss, best_noise;  // [M] double, [M, d]
  std::int64_t starts = 1;           // of each target, one after the other
};

Assigner::Assigner(const Generator& generator, AssignConfig config, RandomStreams streams,
                   FeatureFunction features)
    : generator_(generator),
      config_(std::move(config)),
      streams_(streams),
      features_(std::move(features)),
      size_(noise_size(generator)) {
  validate(config_);
  if (config_.loss.feature > 0 && !features_) {
    fail(ErrorKind::kConfig, "assign.feature needs a feature network",
         "name a classifier file: features = \"judge.safetensors\"");
  }
  if (config_.map != "sphere" && config_.map != "free") {
    config_.rotation.kind = config_.map;
    rotation_ = make_orthogonal_map(config_.rotation, size_);
  }
}

at::Tensor Assigner::losses(const at::Tensor& z, const at::Tensor& eps,
                            const AssignTargets& t) const {
  const AssignLossConfig& w = config_.loss;
  const at::Tensor images = generate_rows(generator_, z, t.labels);
  const at::Tensor difference = (images - t.images).flatten(1);
  at::Tensor loss = at::zeros({z.size(0)}, z.options());
  if (w.mse > 0) loss = loss + w.mse * difference.square().mean(1);
  if (w.l1 > 0) loss = loss + w.l1 * difference.abs().mean(1);
  if (w.feature > 0) {
    loss = loss + w.feature * (features_((images + 1) / 2) - features_((t.images + 1) / 2))
                                  .flatten(1)
                                  .square()
                                  .mean(1);
  }
  if (w.drift > 0) loss = loss + w.drift * (z - eps).square().mean(1);
  if (w.prior > 0) loss = loss + w.prior * ((z.square().mean(1) - 1).square() + z.mean(1).square());
  return loss;
}

at::Tensor Assigner::evaluate(const at::Tensor& z, const at::Tensor& eps,
                              const AssignTargets& targets) const {
  const at::NoGradGuard no_grad;
  const std::int64_t m = z.size(0);
  const at::Tensor all = at::arange(m, at::kLong);
  const at::Tensor out = at::empty({m}, at::kDouble);
  parallel_chunks(m, config_.tile, [&](std::int64_t begin, std::int64_t end) {
    const at::Tensor index = tile_of(all, begin, config_.tile);
    out.narrow(0, begin, end - begin)
        .copy_(losses(z.index_select(0, index), eps.index_select(0, index), select(targets, index))
                   .narrow(0, 0, end - begin));
  });
  return out;
}

at::Tensor Assigner::map(const at::Tensor& parameters, const at::Tensor& eps) const {
  if (config_.map == "free") return parameters;
  if (config_.map == "sphere") return on_sphere(parameters, eps);
  return rotation_->apply(parameters, eps.unsqueeze(1)).squeeze(1);
}

// The search from all starts: every row by its own numbers; network calls are shared.
struct Assigner::Search {
  const Assigner& assigner;
  Rows& rows;
  const AssignTargets& targets;
  const AssignConfig& config{assigner.config_};
  at::Tensor flat{rows.parameters.view({rows.eps.size(0), -1})};  // contiguous fp32
  std::vector<std::unique_ptr<RowOptimizer>> optimizers{make_optimizers()};
  at::Tensor active{at::arange(rows.eps.size(0), at::kLong)};
  at::Tensor since{at::zeros({rows.eps.size(0)}, at::kLong)};
  at::Tensor loss{}, noise{}, gradient{};  // of the active rows

  std::vector<std::unique_ptr<RowOptimizer>> make_optimizers() const {
    // A step of L-BFGS is measured against the length of the noise (rotations: against that of an
    // angle of one radian).
    const double scale =
        assigner.rotation_ ? 1 : std::sqrt(static_cast<double>(assigner.size_)) / 4;
    std::vector<std::unique_ptr<RowOptimizer>> out;
    for (std::int64_t i = 0; i < rows.eps.size(0); ++i) {
      const Retraction retract =
          config.map == "sphere"
              ? sphere_around(numbers_of(rows.eps[i]), config.max_angle * std::numbers::pi / 180)
              : Retraction{};
      out.push_back(config.optimizer == "adam" ? make_row_adam(config.learning_rate, retract)
                                               : make_row_lbfgs({8, 0.15 * scale, scale}, retract));
    }
    return out;
  }

  // Losses and noises of the active rows, and gradients where they are asked for.
  void look(bool with_gradient) {
    const std::int64_t n = active.size(0);
    const std::int64_t tile = config.tile;
    loss = at::empty({n}, at::kDouble);
    noise = at::empty({n, assigner.size_});
    gradient = with_gradient ? at::empty({n, flat.size(1)}) : at::Tensor();
    parallel_chunks(n, tile, [&](std::int64_t begin, std::int64_t end) {
      const at::Tensor index = tile_of(active, begin, tile);
      const at::Tensor eps = rows.eps.index_select(0, index);
      const at::Tensor parameters =
          rows.parameters.index_select(0, index).detach().set_requires_grad(with_gradient);
      const at::AutoGradMode grad(with_gradient);
      const at::Tensor z = assigner.map(parameters, eps);
      const at::Tensor each =
          assigner.losses(z, eps, select(targets, rows.target.index_select(0, index)));
      loss.narrow(0, begin, end - begin).copy_(each.detach().narrow(0, 0, end - begin));
      noise.narrow(0, begin, end - begin).copy_(z.detach().narrow(0, 0, end - begin));
      if (with_gradient) {
        gradient.narrow(0, begin, end - begin)
            .copy_(torch::autograd::grad({each.sum()}, {parameters})[0]
                       .narrow(0, 0, end - begin)
                       .flatten(1));
      }
    });
  }

  void keep_better(const at::Tensor& before) {
    const at::Tensor better = loss < before;
    const at::Tensor index = active.masked_select(better);
    rows.best_loss.index_copy_(0, index, loss.masked_select(better));
    rows.best_noise.index_copy_(0, index, noise.index_select(0, better.nonzero().squeeze(1)));
  }

  // One step of every active row's optimiser; which of them go on. Plain numbers: a tensor
  // operation a row would cost more than the network.
  at::Tensor update(double progress) {
    const std::int64_t n = active.size(0);
    const std::int64_t width = flat.size(1);
    const at::Tensor go_on = at::ones({n}, at::kBool);
    const auto* row_of = active.data_ptr<std::int64_t>();
    const auto* losses_now = loss.data_ptr<double>();
    auto* goes_on = go_on.data_ptr<bool>();
    parallel_chunks(n, 256, [&](std::int64_t begin, std::int64_t end) {
      std::vector<double> x(static_cast<std::size_t>(width));
      std::vector<double> g(static_cast<std::size_t>(width));
      for (std::int64_t i = begin; i < end; ++i) {
        float* point = flat.data_ptr<float>() + row_of[i] * width;
        const float* slope = gradient.data_ptr<float>() + i * width;
        x.assign(point, point + width);
        g.assign(slope, slope + width);
        goes_on[i] =
            optimizers[static_cast<std::size_t>(row_of[i])]->step(losses_now[i], g, x, progress);
        std::copy(x.begin(), x.end(), point);
      }
    });
    return go_on;
  }

  // Drops rows whose loss has not fallen for long.
  at::Tensor patient(const at::Tensor& go_on, const at::Tensor& before) {
    if (config.patience <= 0) return go_on;
    const at::Tensor waited =
        at::where(loss < before * (1 - 1e-3), at::zeros({active.size(0)}, at::kLong),
                  since.index_select(0, active) + 1);
    since.index_copy_(0, active, waited);
    return go_on.logical_and(waited < config.patience);
  }

  // Losses are looked at before each update and after the last.
  void run(AssignResult& counts) {
    for (std::int64_t step = 0; step <= config.steps && active.size(0) > 0; ++step) {
      const bool last = step == config.steps;
      look(!last);
      counts.forwards += active.size(0);
      counts.backwards += last ? 0 : active.size(0);
      const at::Tensor before = rows.best_loss.index_select(0, active);
      keep_better(before);
      if (last) break;
      const at::Tensor go_on =
          update(static_cast<double>(step) / static_cast<double>(config.steps));
      active = active.masked_select(patient(go_on, before));
    }
  }
};

// One start a target: given noises, with losses known before the search, which only replaces them
// by better ones.
Assigner::Rows Assigner::given_starts(const AssignTargets& targets, const at::Tensor& base,
                                      const at::Tensor& warm, AssignResult& out) const {
  Rows rows;
  rows.eps = base.to(at::kFloat).contiguous();
  out.start_loss = evaluate(warm.defined() ? warm : rows.eps, rows.eps, targets);
  out.forwards += targets.images.size(0);
  rows.best_loss = out.start_loss.unsqueeze(1);
  return rows;
}

// The best of `screen` random noises a target.
Assigner::Rows Assigner::random_starts(const AssignTargets& targets, std::uint32_t round,
                                       AssignResult& out) const {
  const std::int64_t n = targets.images.size(0);
  Rows rows;
  rows.starts = std::min(config_.restarts, config_.screen);
  std::vector<at::Tensor> each;  // noise of target i and start s: keyed by the target alone
  for (std::int64_t i = 0; i < n; ++i) {
    const std::int64_t id = targets.ids[i].item<std::int64_t>();
    std::vector<at::Tensor> candidates;
    for (std::int64_t s = 0; s < config_.screen; ++s) {
      candidates.push_back(
          streams_.normal(Purpose::kPrior, round, static_cast<std::uint32_t>(s), id, 1, {size_}));
    }
    each.push_back(at::cat(candidates));
  }
  const at::Tensor all = at::stack(each);  // [n, screen, d]
  const at::Tensor owner = at::arange(n, at::kLong).repeat_interleave(config_.screen);
  const at::Tensor flat = all.view({n * config_.screen, size_});
  const at::Tensor loss = evaluate(flat, flat, select(targets, owner)).view({n, config_.screen});
  out.forwards += n * config_.screen;
  out.start_loss = loss.select(1, 0).clone();
  const at::Tensor chosen =
      std::get<1>(loss.sort(std::optional<bool>(true), 1, /*descending=*/false))
          .narrow(1, 0, rows.starts);  // [n, starts]
  rows.best_loss = loss.gather(1, chosen);
  rows.eps = all.gather(1, chosen.unsqueeze(2).expand({n, rows.starts, size_}))
                 .view({n * rows.starts, size_})
                 .contiguous();
  return rows;
}

AssignResult Assigner::assign(const AssignTargets& targets, std::uint32_t round,
                              const at::Tensor& base, const at::Tensor& warm) const {
  const std::int64_t n = targets.images.size(0);
  AssignResult out;
  Rows rows =
      base.defined() ? given_starts(targets, base, warm, out) : random_starts(targets, round, out);
  const std::int64_t starts = rows.starts;
  rows.target = at::arange(n, at::kLong).repeat_interleave(starts);
  const at::Tensor start = warm.defined() ? warm.to(at::kFloat) : rows.eps;
  rows.best_noise = start.clone();
  rows.best_loss = at::where(at::isfinite(rows.best_loss), rows.best_loss,
                             at::full_like(rows.best_loss, std::numeric_limits<double>::infinity()))
                       .reshape({n * starts})
                       .contiguous();
  if (rotation_ && warm.defined()) {
    fail(ErrorKind::kConfig,
         cat("a warm start needs map = \"sphere\" or \"free\", not \"", config_.map, "\""));
  }
  rows.parameters =
      rotation_ ? rotation_->initial(streams_, 0, 1)
                      .expand(at::IntArrayRef(rotation_->initial(streams_, 0, n * starts).sizes()))
                      .contiguous()
                : start.clone();
  if (config_.steps > 0) Search{*this, rows, targets}.run(out);
  const at::Tensor table = rows.best_loss.view({n, starts});
  const at::Tensor best = table.argmin(1, true);
  const at::Tensor pick = (best.squeeze(1) + at::arange(n, at::kLong) * starts);
  out.loss = rows.best_loss.index_select(0, pick);
  out.noise = rows.best_noise.index_select(0, pick);
  out.base = rows.eps.index_select(0, pick);
  return out;
}

// What the generator makes of a pool of noises, in tiles on all cores.
at::Tensor Assigner::pool_images(const at::Tensor& pool, std::optional<std::int64_t> label) const {
  const std::int64_t count = pool.size(0);
  std::vector<std::int64_t> shape = generator_.sample_shape();
  shape.insert(shape.begin(), count);
  const at::Tensor images = at::empty(shape);
  const at::Tensor all = at::arange(count, at::kLong);
  parallel_chunks(count, config_.tile, [&](std::int64_t first, std::int64_t end) {
    const at::Tensor labels = label ? at::full({config_.tile}, *label, at::kLong) : at::Tensor();
    images.narrow(0, first, end - first)
        .copy_(generate_rows(generator_, pool.index_select(0, tile_of(all, first, config_.tile)),
                             labels)
                   .narrow(0, 0, end - first));
  });
  return images;
}

// Image terms of the loss for every pair, [targets, images] double.
at::Tensor Assigner::pair_costs(const at::Tensor& wanted, const at::Tensor& images) const {
  const AssignLossConfig& w = config_.loss;
  const auto squared = [](const at::Tensor& a, const at::Tensor& b) {  // mean over an image
    const at::Tensor x = a.flatten(1).to(at::kDouble);
    const at::Tensor y = b.flatten(1).to(at::kDouble);
    return (x.square().sum(1, true) + y.square().sum(1).unsqueeze(0) - 2 * x.matmul(y.t())) /
           static_cast<double>(x.size(1));
  };
  at::Tensor cost = at::zeros({wanted.size(0), images.size(0)}, at::kDouble);
  if (w.mse > 0) cost += w.mse * squared(wanted, images);
  if (w.l1 > 0) {
    cost += w.l1 *
            at::cdist(wanted.flatten(1).to(at::kDouble), images.flatten(1).to(at::kDouble), 1) /
            static_cast<double>(images[0].numel());
  }
  if (w.feature > 0) {
    cost += w.feature * squared(features_((wanted + 1) / 2), features_((images + 1) / 2));
  }
  return cost;
}

at::Tensor Assigner::transport(const AssignTargets& targets, std::uint32_t round) const {
  const at::NoGradGuard no_grad;
  const std::int64_t n = targets.images.size(0);
  at::Tensor out = at::empty({n, size_});
  const std::int64_t groups =
      generator_.classes() > 0 && targets.labels.defined() ? generator_.classes() : 1;
  for (std::int64_t label = 0; label < groups; ++label) {
    const at::Tensor members =
        groups > 1 ? (targets.labels == label).nonzero().squeeze(1) : at::arange(n, at::kLong);
    for (std::int64_t begin = 0; begin < members.size(0); begin += config_.block) {
      const at::Tensor block =
          members.narrow(0, begin, std::min(config_.block, members.size(0) - begin));
      const auto count =
          static_cast<std::int64_t>(std::ceil(static_cast<double>(block.size(0)) * config_.pool));
      // The pool is keyed by the first target of the block, so that it is the same whoever computes
      // it.
      const at::Tensor pool = streams_.normal(
          Purpose::kPrior, round, static_cast<std::uint32_t>(1 + label), begin * 8, count, {size_});
      const at::Tensor images = pool_images(pool, groups > 1 ? std::optional(label) : std::nullopt);
      const at::Tensor cost = pair_costs(select(targets, block).images, images);
      const std::vector<std::int64_t> columns =
          config_.init == "sinkhorn" ? sinkhorn_assignment(cost) : linear_assignment(cost);
      out.index_copy_(0, block, pool.index_select(0, at::tensor(columns, at::kLong)));
    }
  }
  return out;
}

}  // namespace tiltflow
