#include <algorithm>
#include <cmath>
#include <limits>
#include <mutex>

#include "tiltflow/base/count.h"
#include "tiltflow/base/error.h"
#include "tiltflow/base/log.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/image.h"
#include "tiltflow/models/model_file.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/tensor/parallel.h"
#include "tiltflow/train/onestep.h"

namespace tiltflow {
namespace {

const std::string kA = ".lora_A.weight";
const std::string kB = ".lora_B.weight";
const std::string kWeight = ".weight";

bool matches_any(const std::string& name, const std::vector<std::string>& patterns) {
  return std::any_of(patterns.begin(), patterns.end(),
                     [&](const std::string& p) { return matches_pattern(name, p); });
}

}  // namespace

void bind(Fields& f, SftConfig& c) {
  f.path("assigned", c.assigned, PathKind::kAll, "sft: folder of `tiltflow assign`");
  f.value("mode", c.mode,
          "matched (the assigned noise) or direct (fresh noise for every target: the baseline)",
          one_of({"matched", "direct"}));
  f.value("batch", c.batch, "pairs per step", at_least_integer(1));
  f.renamed("item", "micro_batch");
  f.value("micro_batch", c.micro_batch, "pairs per independent piece of work", at_least_integer(1));
  f.value("mse", c.mse, "weight of the mean squared error", at_least(0));
  f.value("l1", c.l1, "weight of the mean absolute error", at_least(0));
  f.value("preserve", c.preserve,
          "weight of the squared distance to the starting generator on fresh noise", at_least(0));
  f.value("anchor", c.anchor,
          "weight of the squared distance to the anchor generator on fresh noise", at_least(0));
  f.path("anchor_file", c.anchor_file, PathKind::kWeights,
         "the anchor; empty = the starting generator (em: that of the first round)");
  f.value("batch_norm", c.batch_norm, "normalisation statistics: frozen, or train (of the batch)",
          one_of({"frozen", "train"}));
  f.value("validation", c.validation,
          "share of the pairs held out to choose the best weights; 0 = the last weights",
          between(0, 0.9));
  f.value("evaluate_every", c.evaluate_every, "steps between looks at the held-out pairs",
          at_least_integer(1));
  f.value("policy", c.policy, "full or lora", one_of({"full", "lora"}));
  f.value("trainable", c.trainable,
          "patterns of the tensors that change (full) or get an adapter (lora)");
  f.value("rank", c.rank, "lora: rank", at_least_integer(1));
  f.value("alpha", c.alpha, "lora: the change is scaled by alpha / rank", positive());
}

GeneratorPolicy::GeneratorPolicy(std::shared_ptr<const Generator> base, const SftConfig& c,
                                 const RandomStreams& streams)
    : base_(std::move(base)),
      lora_(c.policy == "lora"),
      scale_(c.alpha / static_cast<double>(c.rank)) {
  std::uint32_t key = 0;
  for (const auto& [name, tensor] : base_->parameters()) {
    ++key;
    if (base_->is_buffer(name) || !matches_any(name, c.trainable)) continue;
    if (!lora_) {
      trainable_.add(name, tensor.detach().clone().set_requires_grad(true));
    } else if (ends_with(name, kWeight) &&
               tensor.dim() >= 2) {  // a convolution counts as the matrix [first, rest]
      const std::string layer = name.substr(0, name.size() - kWeight.size());
      const std::int64_t in = tensor.numel() / tensor.size(0);
      trainable_.add(layer + kA, (streams.uniform(Purpose::kInit, key, 0, c.rank, {in}) * 2 - 1)
                                     .div(std::sqrt(static_cast<double>(in)))
                                     .to(tensor.device())
                                     .set_requires_grad(true));
      trainable_.add(layer + kB,
                     at::zeros({tensor.size(0), c.rank}, tensor.options().requires_grad(false))
                         .set_requires_grad(true));
    }
  }
  if (trainable_.empty()) {
    fail(ErrorKind::kConfig, cat("sft.trainable: no tensor matches ", join(c.trainable, ", ")),
         "`tiltflow inspect` lists the generator's tensors");
  }
}

ParameterSet GeneratorPolicy::weights(const ParameterSet& trained) const {
  ParameterSet out;
  for (const auto& [name, tensor] : base_->parameters()) {
    const std::string layer =
        ends_with(name, kWeight) ? name.substr(0, name.size() - kWeight.size()) : "";
    if (!lora_ && trained.contains(name)) {
      out.add(name, trained.at(name));
    } else if (lora_ && !layer.empty() && trained.contains(layer + kA)) {
      out.add(name, tensor + (at::matmul(trained.at(layer + kB), trained.at(layer + kA)) * scale_)
                                 .view(tensor.sizes()));
    } else {
      out.add(name, tensor);
    }
  }
  return out;
}

SftObjective::SftObjective(std::shared_ptr<const Generator> base,
                           std::shared_ptr<const Generator> anchor, AssignedSet pairs,
                           const SftConfig& c, std::uint64_t seed)
    : config_(c),
      streams_(seed),
      base_(std::move(base)),
      anchor_(std::move(anchor)),
      pairs_(std::move(pairs)),
      policy_(base_, c, streams_),
      statistics_(buffers_of(*base_)),
      best_loss_(std::numeric_limits<double>::infinity()) {
  if (c.mse + c.l1 <= 0) {
    fail(ErrorKind::kConfig, "sft: both image terms have weight 0", "set sft.mse or sft.l1");
  }
  if (pairs_.noise.size(1) != noise_size(*base_)) {
    fail(ErrorKind::kBadFile,
         cat("the assigned noise has ", counted(pairs_.noise.size(1), "number"),
             ", the generator takes ", noise_size(*base_)));
  }
  if (pairs_.images.sizes().slice(1) != at::IntArrayRef(base_->sample_shape())) {
    fail(ErrorKind::kBadFile, cat("the targets are ", shape_text(pairs_.images.sizes().slice(1)),
                                  ", the generator makes ", shape_text(base_->sample_shape())));
  }
  if (base_->classes() > 0 && (pairs_.labels.min().item<std::int64_t>() < 0 ||
                               pairs_.labels.max().item<std::int64_t>() >= base_->classes())) {
    fail(ErrorKind::kBadFile, cat("the pairs have labels outside 0..", base_->classes() - 1));
  }
  const std::int64_t n = pairs_.size();
  const std::int64_t held =
      static_cast<std::int64_t>(std::llround(c.validation * static_cast<double>(n)));
  const at::Tensor order = at::tensor(streams_.permutation(Purpose::kSubset, 0, n), at::kLong);
  held_out_ = order.narrow(0, 0, held);
  training_ = order.narrow(0, held, n - held);
  order_ = std::make_unique<BatchOrder>(n - held, config_.batch, streams_);
  best_ = clone(policy_.trainable(), false);
  best_statistics_ = clone(statistics_.buffers(), false);
}

std::int64_t SftObjective::begin_step(std::int64_t step) {
  step_ = step;
  indices_ = training_.index_select(0, order_->indices(step));
  const std::int64_t items = (config_.batch + config_.micro_batch - 1) / config_.micro_batch;
  statistics_.begin(items);
  return items;
}

at::Tensor SftObjective::matched(const at::Tensor& made, const at::Tensor& wanted) const {
  const at::Tensor d = (made - wanted).flatten(1);
  return config_.mse * d.square().mean(1) + config_.l1 * d.abs().mean(1);
}

at::Tensor SftObjective::made_by(const Generator& g, const at::Tensor& z, const at::Tensor& labels,
                                 std::int64_t piece) {
  if (config_.batch_norm == "frozen") return generate_rows(g, z, labels);
  Generator::TrainingOutput out = g.generate_in_training(shaped_noise(g, z), labels);
  statistics_.propose(piece, std::move(out.buffers));
  return out.samples;
}

LossReport SftObjective::micro_batch(std::int64_t i) {
  const std::int64_t begin = i * config_.micro_batch;
  const std::int64_t n = std::min(config_.micro_batch, config_.batch - begin);
  const at::Tensor index = indices_.narrow(0, begin, n);
  const at::Tensor wanted = state_of_bytes(pairs_.images.index_select(0, index));
  const at::Tensor labels =
      base_->classes() > 0 ? pairs_.labels.index_select(0, index) : at::Tensor();
  const auto step = static_cast<std::uint32_t>(step_);
  const auto fresh = [&](std::uint32_t sub) {
    return streams_.normal(Purpose::kPrior, step, sub, begin, n, {noise_size(*base_)});
  };
  const auto generator = policy_.generator(policy_.trainable());
  const at::Tensor z = config_.mode == "direct" ? fresh(0) : pairs_.noise.index_select(0, index);
  LossReport report;
  at::Tensor loss = matched(made_by(*generator, z, labels, i), wanted).sum();
  report.metrics.add("matched_loss", loss.item<double>(), static_cast<double>(n));
  if (config_.preserve > 0 || config_.anchor > 0) {
    const at::Tensor noise = fresh(1);
    const at::Tensor made = generate_rows(*generator, noise, labels);
    const auto keep = [&](const Generator& old, double weight, const char* name) {
      if (weight <= 0) return;
      at::Tensor before;
      {
        const at::NoGradGuard no_grad;
        before = generate_rows(old, noise, labels);
      }
      const at::Tensor distance = (made - before).flatten(1).square().mean(1).sum();
      report.metrics.add(name, distance.item<double>(), static_cast<double>(n));
      loss = loss + weight * distance;
    };
    keep(*base_, config_.preserve, "preserve_loss");
    keep(*anchor_, config_.anchor, "anchor_loss");
  }
  report.loss = loss / static_cast<double>(config_.batch);
  return report;
}

double SftObjective::validate(const ParameterSet& trained) {
  if (!has_validation()) return std::numeric_limits<double>::quiet_NaN();
  const at::NoGradGuard no_grad;
  const auto generator = policy_.generator(trained);
  double sum = 0;
  std::mutex mutex;
  parallel_chunks(
      held_out_.size(0), config_.micro_batch, [&](std::int64_t begin, std::int64_t end) {
        const at::Tensor index = held_out_.narrow(0, begin, end - begin);
        const at::Tensor labels =
            base_->classes() > 0 ? pairs_.labels.index_select(0, index) : at::Tensor();
        const at::Tensor z =
            config_.mode == "direct"
                ? streams_.normal(Purpose::kExact, 1, 0, begin, end - begin, {noise_size(*base_)})
                : pairs_.noise.index_select(0, index);
        const double part = matched(generate_rows(*generator, z, labels),
                                    state_of_bytes(pairs_.images.index_select(0, index)))
                                .sum(at::kDouble)
                                .item<double>();
        const std::lock_guard lock(mutex);
        sum += part;
      });
  const double loss = sum / static_cast<double>(held_out_.size(0));
  if (loss < best_loss_) {
    best_loss_ = loss;
    best_ = clone(trained, false);
    best_statistics_ = clone(statistics_.buffers(), false);
  }
  return loss;
}

ParameterSet SftObjective::best() const {
  ParameterSet out;
  for (const auto& [name, tensor] : policy_.weights(best_)) {
    out.add(
        name,
        (best_statistics_.contains(name) ? best_statistics_.at(name) : tensor).detach().clone());
  }
  return out;
}

ParameterSet SftObjective::state() const {
  ParameterSet out;
  for (const auto& [name, tensor] : statistics_.buffers()) out.add("buffer." + name, tensor);
  for (const auto& [name, tensor] : best_) out.add("best." + name, tensor);
  for (const auto& [name, tensor] : best_statistics_) out.add("best_buffer." + name, tensor);
  out.add("best_loss", at::full({1}, best_loss_, at::kDouble));
  return out;
}

void SftObjective::restore(const ParameterSet& stored) {
  const ParameterSet now = state();
  assign(now, stored, "state of the checkpoint");
  best_loss_ = now.at("best_loss").item<double>();
}

SftResult sft(std::shared_ptr<const Generator> start, std::shared_ptr<const Generator> anchor,
              const AssignedSet& pairs, const OneStepConfig& config, Run& run) {
  // Statistics are written in place when they are trained: on a copy of their own.
  const std::shared_ptr<const Generator> base = start->rebind(clone(start->parameters(), false));
  if (!anchor) anchor = start;
  SftObjective objective(base, anchor, pairs, config.sft, static_cast<std::uint64_t>(config.seed));
  log_info(cat("sft, ", config.sft.mode, ": ", counted(objective.training_pairs(), "pair"),
               " to train on, ", pairs.size() - objective.training_pairs(), " held out; ",
               objective.trainable().numel(), " trainable of ", base->parameters().numel(),
               " parameters"));
  SftResult result;
  const bool fresh = !run.has_checkpoint();
  if (fresh) {
    run.latest();
    if (objective.has_validation()) {
      run.log(0, {{"validation_loss", objective.validate(objective.trainable())}});
    }
  }
  TrainHooks hooks;
  hooks.label = "sft";
  hooks.note = [&](const std::map<std::string, double>& m) {
    return cat("matched ", compact(m.at("matched_loss"), 3),
               objective.has_validation()
                   ? cat("  held-out best ", compact(objective.best_loss(), 3))
                   : "");
  };
  hooks.changes_state = objective.has_validation();  // which weights are the best so far
  hooks.after_step = [&](std::int64_t step, const ParameterSet& average) {
    if (objective.has_validation() &&
        (step % config.sft.evaluate_every == 0 || step == config.train.steps)) {
      run.log(step, {{"validation_loss", objective.validate(average)}});
    }
  };
  const TrainResult trained = train(config.train, objective, run, hooks);
  result.validation = objective.best_loss();
  result.file = run.directory() / "model.safetensors";
  if (!run.writes()) return result;
  const ParameterSet weights = objective.has_validation()
                                   ? objective.best()
                                   : clone(objective.policy().weights(trained.average), false);
  save_any_generator(result.file, *base, weights);
  const std::int64_t shown = std::min<std::int64_t>(32, pairs.size());
  const at::NoGradGuard no_grad;
  const auto tuned = base->rebind(weights);
  const at::Tensor labels = base->classes() > 0 ? pairs.labels.narrow(0, 0, shown) : at::Tensor();
  const at::Tensor z = pairs.noise.narrow(0, 0, shown);
  const at::Tensor n = RandomStreams(static_cast<std::uint64_t>(config.seed))
                           .normal(Purpose::kExact, 0, 0, 0, shown, {noise_size(*base)});
  const auto image = [&](const Generator& g, const at::Tensor& noise) {
    return (generate_rows(g, noise, labels) + 1) / 2;
  };
  if (is_picture(base->sample_shape())) {
    const at::Tensor targets = pairs.images.narrow(0, 0, shown).to(at::kFloat) / 255;
    run.picture(
        "target-base-tuned", trained.steps,
        image_grid(at::stack({targets, image(*start, z), image(*tuned, z)}, 1).flatten(0, 1), 12));
    run.picture("random-base-tuned", trained.steps,
                image_grid(at::stack({image(*start, n), image(*tuned, n)}, 1).flatten(0, 1), 16));
  }
  return result;
}

}  // namespace tiltflow
