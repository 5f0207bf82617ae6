#include <algorithm>

#include "tiltflow/base/count.h"
#include "tiltflow/base/log.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/tensor/process_group.h"
#include "tiltflow/train/finetuning.h"
#include "tiltflow/train/reward_terms.h"

namespace tiltflow {
namespace {

// Prefixes of what others than the method keep in a checkpoint.
const std::string kSurrogate = "surrogate.";
const std::string kModes = "modes.";

}  // namespace

FinetuneObjective::FinetuneObjective(const FinetuneSetup& setup, Policy policy,
                                     std::unique_ptr<FinetuneMethod> method, double log_z)
    : setup_(setup),
      policy_(std::move(policy)),
      counted_base_(std::make_shared<CountingField>(policy_.base)),
      counted_tuned_(std::make_shared<CountingField>(policy_.tuned)),
      method_(std::move(method)),
      labels_(no_labels()),
      log_z_(log_z) {
  policy_.base = counted_base_;
  policy_.tuned = counted_tuned_;
  policy_ = setup_.for_training(std::move(policy_));
  const FinetuneConfig& c = setup_.config;
  const std::vector<std::int64_t> shape = setup_.flow.model->sample_shape();
  const std::int64_t classes = setup_.flow.model->classes();
  const auto seed = static_cast<std::uint64_t>(c.seed);
  if (c.modes.codes > 0) {
    modes_ = std::make_unique<ModePreservation>(c.modes, shape, classes, seed);
  }
  if (c.surrogate.every > 0) {
    surrogate_ = std::make_unique<Surrogate>(c.surrogate, shape, classes, seed);
  }
}

FinetuneContext FinetuneObjective::context(const StateReward& reward) const {
  FinetuneContext out{policy_,
                      reward,
                      *setup_.flow.path,
                      setup_.table,
                      setup_.streams,
                      labels_,
                      setup_.flow.model->sample_shape(),
                      at::kFloat,
                      log_z_};
  if (modes_) {
    out.extra_reward = [this](const at::Tensor& x_0, const at::Tensor& x_1,
                              const at::Tensor& labels) {
      return modes_->extra_reward(x_0, x_1, labels);
    };
  }
  return out;
}

std::int64_t FinetuneObjective::begin_step(std::int64_t step) {
  step_ = step;
  counted_base_->reset();
  counted_tuned_->reset();
  pass_ = step % setup_.config.buffer_passes;
  const std::int64_t items =
      (setup_.config.batch + setup_.config.micro_batch - 1) / setup_.config.micro_batch;
  collects_ = pass_ == 0 || buffer_.empty();
  if (collects_) {
    if (pass_ > 0) {
      log_info(cat("the run had ended within a batch: it is collected anew for ",
                   counted(setup_.config.buffer_passes - pass_, "step")));
    }
    labels_ = setup_.labels_at(static_cast<std::uint32_t>(step));
    buffer_.assign(static_cast<std::size_t>(items), Batch{});
  }
  if (surrogate_ && pass_ == 0 && surrogate_->due(step)) {
    surrogate_->refresh(context(), *setup_.reward, step);
  }
  if (modes_ && pass_ == 0 && modes_->due(step)) modes_->refresh(context(), step);
  method_->begin_step(context(), step, pass_);
  return items;
}

LossReport FinetuneObjective::micro_batch(std::int64_t i) {
  const std::int64_t first = i * setup_.config.micro_batch;
  const std::int64_t n = std::min(setup_.config.micro_batch, setup_.config.batch - first);
  const bool reuse = setup_.config.buffer_passes > 1;
  const TermMeter meter(surrogate_ ? surrogate_->reward() : *setup_.reward);
  const FinetuneContext context = this->context(meter.reward());
  const std::vector<std::string> suffixes =
      surrogate_ ? std::vector<std::string>{} : term_suffixes(setup_.config.reward);
  if (reuse) {
    Batch& kept = buffer_[static_cast<std::size_t>(i)];
    if (collects_) {
      kept = method_->collect(context, step_, first, n, true);
      meter.add_to(kept.metrics, suffixes, kept.rewards, n);
    }
    return method_->loss(context, kept, setup_.config.batch);
  }
  const Batch batch = method_->collect(context, step_, first, n, false);
  LossReport report = method_->loss(context, batch, setup_.config.batch);
  meter.add_to(report.metrics, suffixes, batch.rewards, n);
  return report;
}

ParameterSet FinetuneObjective::state() const {
  ParameterSet out = method_->state();
  if (surrogate_) {
    for (const auto& [name, tensor] : surrogate_->state()) out.add(kSurrogate + name, tensor);
  }
  if (modes_) {
    for (const auto& [name, tensor] : modes_->state()) out.add(kModes + name, tensor);
  }
  return out;
}

void FinetuneObjective::restore(const ParameterSet& state) {
  ParameterSet of_method;
  ParameterSet of_surrogate;
  ParameterSet of_modes;
  for (const auto& [name, tensor] : state) {
    if (starts_with(name, kSurrogate)) {
      of_surrogate.add(name.substr(kSurrogate.size()), tensor);
    } else if (starts_with(name, kModes)) {
      of_modes.add(name.substr(kModes.size()), tensor);
    } else {
      of_method.add(name, tensor);
    }
  }
  method_->restore(of_method);
  if (surrogate_) surrogate_->restore(of_surrogate);
  if (modes_) modes_->restore(of_modes);
}

void FinetuneObjective::end_step(std::map<std::string, double>& metrics) {
  method_->end_step(metrics);
  if (surrogate_) surrogate_->add_metrics(metrics);
  if (modes_) modes_->add_metrics(metrics);
  // Forwards and vector-Jacobian products as counted, plus the training backward over the loss
  // steps.
  const at::Tensor total = at::full(
      {1}, static_cast<double>(counted_base_->count() + counted_tuned_->count()), at::kDouble);
  all_reduce_sum({total});
  const double counted = total.item<double>();
  metrics["evaluations"] = counted / static_cast<double>(setup_.config.batch) +
                           method_->training_calls(setup_.table) * policy_.backward_cost;
}

}  // namespace tiltflow
