#include "tiltflow/train/trainer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <exception>
#include <functional>
#include <mutex>
#include <optional>

#include "tiltflow/base/error.h"
#include "tiltflow/base/log.h"
#include "tiltflow/base/progress.h"
#include "tiltflow/base/signals.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/tensor/device.h"
#include "tiltflow/tensor/parallel.h"
#include "tiltflow/tensor/precision.h"
#include "tiltflow/tensor/process_group.h"
#include "tiltflow/train/last_step.h"

namespace tiltflow {
namespace {

// Lets workers finish in any order but add up in micro-batch order, so that sums do not depend on
// timing.
class InOrder {
 public:
  void enter(std::int64_t turn) {
    std::unique_lock lock(mutex_);
    ready_.wait(lock, [&] { return next_ == turn || failure_; });
    if (failure_) {
      std::rethrow_exception(failure_);  // the first worker's own error, whoever reports it
    }
  }
  void leave() {
    const std::lock_guard lock(mutex_);
    ++next_;
    ready_.notify_all();
  }
  void abort(std::exception_ptr failure) {
    const std::lock_guard lock(mutex_);
    if (!failure_) failure_ = failure;
    ready_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable ready_;
  std::int64_t next_ = 0;
  std::exception_ptr failure_;
};

struct StepGradients {
  std::vector<at::Tensor> gradients;
  double loss = 0;
  double norm = 0;  // of the gradients before they are clipped
  MetricSums metrics;
};

// The items of this process (every size-th), then the sum over all processes; items add up in
// order, processes by rank. Gradients of tensors that this step does not train stay undefined.
StepGradients accumulate(Objective& objective, std::int64_t items, const ParameterSet& trainable) {
  const std::int64_t rank = world_rank();
  const std::int64_t size = world_size();
  const std::int64_t mine = (items - rank + size - 1) / size;
  StepGradients out;
  std::vector<at::Tensor> weights;
  std::vector<std::size_t> places;  // of the weights among all
  for (const auto& [name, weight] : trainable) {
    out.gradients.emplace_back();
    if (!objective.trains(name)) continue;
    places.push_back(out.gradients.size() - 1);
    weights.push_back(weight);
    out.gradients.back() = at::zeros_like(weight, weight.options().requires_grad(false));
  }
  InOrder order;
  const at::AutoGradMode grad(true);
  parallel_for(mine, [&](std::int64_t i) {
    try {
      LossReport report = objective.micro_batch(rank + i * size);
      const double loss = report.loss.item<double>();
      const auto found = torch::autograd::grad({report.loss}, weights, {}, /*retain_graph=*/false,
                                               /*create_graph=*/false, /*allow_unused=*/true);
      report.loss = at::Tensor();
      order.enter(i);
      for (std::size_t j = 0; j < weights.size(); ++j) {
        if (found[j].defined()) out.gradients[places[j]].add_(found[j]);
      }
      out.loss += loss;
      out.metrics.add(report.metrics);
      order.leave();
    } catch (...) {
      order.abort(std::current_exception());
      throw;
    }
  });
  if (size > 1) {
    std::vector<at::Tensor> trained;
    for (const std::size_t place : places) trained.push_back(out.gradients[place]);
    all_reduce_sum(trained);
    out.metrics.add("loss of a process", out.loss, 0);
    const std::vector<std::string> parts = all_gather(out.metrics.text());
    out.metrics = {};
    for (const std::string& part : parts) out.metrics.add(MetricSums::from_text(part));
    out.loss = out.metrics.take("loss of a process");
  }
  return out;
}

struct Start {
  std::int64_t step = 0;  // steps that are done
  bool followed = true;   // and what follows the last of them
};

// Weights, optimiser, average and objective as the newest checkpoint has them, if there is one.
Start restore(Objective& objective, AdamW& optimizer, const WeightAverage& average, Run& run) {
  const std::optional<Checkpoint> checkpoint = run.latest();
  if (!checkpoint) return {};
  for (const char* part : {"weights", "average", "optimizer"}) {
    if (!checkpoint->parts.count(part)) {
      fail(ErrorKind::kBadFile, cat("the newest checkpoint in ", run.directory().string(),
                                    " lacks ", part, ".safetensors"));
    }
  }
  assign(objective.trainable(), checkpoint->parts.at("weights"), "checkpoint weights");
  assign(average.values(), checkpoint->parts.at("average"), "checkpoint average");
  optimizer.restore(checkpoint->parts.at("optimizer"));
  if (checkpoint->parts.count("objective")) objective.restore(checkpoint->parts.at("objective"));
  if (checkpoint->step > 0) log_info(cat("resuming after step ", checkpoint->step));
  return {checkpoint->step, checkpoint->followed};
}

std::string stop_text(std::int64_t step, const Run& run) {
  const std::string when = step == 0 ? "before the first step was complete; nothing is lost in "
                                     : cat("after step ", step, "; checkpoint saved in ");
  return cat("stopped by ", stop_signal_name(), " ", when, run.directory().string());
}

// Calls `work`. When a signal or a lost process ends it, the last whole step is saved.
void saving_on_stop(LastStep& last, Run& run, std::int64_t keep,
                    const std::function<void()>& work) {
  const char* const hint = "continue with --resume";
  const StopSaver saver(hint, [&] { return stop_text(last.save(run, keep), run); });
  try {
    work();
  } catch (...) {
    if (stop_signal() == 0 && !partner_lost()) throw;
    const std::int64_t step = last.save(run, keep);
    if (stop_signal() == 0) {
      log_warn(cat("a process is lost; the checkpoint after step ", step, " is saved in ",
                   run.directory().string()));
      throw;
    }
    fail(ErrorKind::kStopped, stop_text(step, run), hint);
  }
}

[[noreturn]] void fail_diverged(const Run& run, std::int64_t step, const std::string& reason) {
  fail(ErrorKind::kDiverged,
       cat("stopped by train.stop_when after step ", step, ": ", reason,
           "; this state and the checkpoints before it are in ",
           (run.directory() / "checkpoints").string()),
       "change what the warnings name and start afresh; --resume goes on from this state, or from "
       "the one before when the newest folder of checkpoints is removed");
}

// A run that became longer or shorter: what its schedule does now.
void announce_length(const TrainConfig& config, std::int64_t step, const Run& run) {
  const std::vector<KeyChange>& changes = run.changes();
  const auto found = std::find_if(changes.begin(), changes.end(), [](const KeyChange& change) {
    return change.key == "train.steps";
  });
  if (found == changes.end() || step >= config.steps) return;
  const std::int64_t before = std::stoll(found->before);
  const auto rate = [&](std::int64_t at, std::int64_t total) {
    return compact(config.optimizer.learning_rate * schedule_factor(config.optimizer, at, total));
  };
  const std::string next =
      cat("step ", step + 1, " is done at a learning rate of ", rate(step, config.steps));
  if (config.optimizer.schedule == "constant") {
    log_info(cat(next, ", as a run of ", config.steps, " steps from the start would"));
  } else {
    log_info(cat("the ", config.optimizer.schedule, " schedule now spans ", config.steps,
                 " steps instead of ", before, ": ", next, ", the last one was at ",
                 rate(std::max<std::int64_t>(0, step - 1), before)));
  }
}

}  // namespace

void bind(Fields& f, TrainConfig& c) {
  f.value("steps", c.steps, "number of optimiser steps", at_least_integer(0));
  f.value("average_decay", c.average_decay,
          "decay of the averaged weights (EMA); 0 = use the raw weights", between(0, 0.999999));
  f.value("checkpoint_every", c.checkpoint_every, "steps between checkpoints", at_least_integer(1));
  f.value("keep_checkpoints", c.keep_checkpoints, "how many of the newest checkpoints to keep",
          at_least_integer(1));
  f.value("stop_when", c.stop_when,
          "end the run early (exit 6) when one of these holds: [\"control_cost > 1000\", \"loss > "
          "5 for 20\"], or a kind of warning, e.g. \"control-cost\" (docs/warnings.md)");
  for (const std::string& condition : c.stop_when) {
    try {
      parse_stop_condition(condition);
    } catch (const Error& error) {
      f.problem("stop_when", cat(error.what(), "; ", error.hint()));
    }
  }
  bind(f, c.optimizer);
}

namespace {

// The steps of one call of `train`.
struct Training {
  const TrainConfig& config;
  const TrainHooks& hooks;
  Objective& objective;
  Run& run;
  AdamW& optimizer;
  WeightAverage& average;
  LastStep& last;
  Watch& watch;
  std::int64_t step;  // that are done

  // What comes after a step: evaluation, and whatever the caller adds.
  void follow() {
    const std::map<std::string, double> figures =
        hooks.evaluate ? hooks.evaluate(step, average.values()) : std::map<std::string, double>{};
    if (!figures.empty()) {
      run.log(step, figures);
      watch.observe(step, figures);
    }
    if (hooks.after_step) hooks.after_step(step, average.values());
    last.followed(hooks.changes_state);
  }

  // Gradients of the next step, clipped; their norm before that is a metric.
  StepGradients finite_gradients() {
    const std::int64_t items = objective.begin_step(step);
    StepGradients result = accumulate(objective, items, objective.trainable());
    if (!std::isfinite(result.loss)) {
      fail(ErrorKind::kNonFinite, cat("the loss is not finite at step ", step + 1),
           "lower the learning rate or the reward scale; the last checkpoint is intact");
    }
    result.norm = clip_gradients(result.gradients, config.optimizer.gradient_clip);
    if (!std::isfinite(result.norm)) {
      fail(ErrorKind::kNonFinite, cat("a gradient is not finite at step ", step + 1),
           "lower the learning rate; the last checkpoint is intact");
    }
    return result;
  }

  // One step and what follows it; true when the objective could be saved behind it.
  bool advance(Progress& progress) {
    const auto begin = std::chrono::steady_clock::now();
    const StepGradients result = finite_gradients();
    const double rate =
        config.optimizer.learning_rate * schedule_factor(config.optimizer, step, config.steps);
    std::map<std::string, double> metrics = result.metrics.averages();
    metrics["loss"] = result.loss;
    metrics["gradient_norm"] = result.norm;
    metrics["learning_rate"] = rate;
    objective.end_step(metrics);
    const bool complete = objective.at_checkpoint() || step + 1 == config.steps;
    last.advance(complete, [&] {
      optimizer.step(result.gradients, rate);
      average.update(step);
      metrics["seconds"] =
          std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
      metrics["peak_memory_mb"] = peak_memory_bytes() / 1e6;
      if (const double bytes = device_peak_bytes(); bytes > 0) {
        metrics["peak_device_memory_mb"] = bytes / 1e6;
      }
      run.log(step + 1, metrics);
    });
    ++step;
    watch.observe(step, metrics);
    progress.update(step, hooks.note ? hooks.note(metrics) : cat("loss ", compact(result.loss)));
    follow();
    return complete;
  }

  void run_to_end(bool followed) {
    if (!followed) follow();
    bool due = false;  // a checkpoint is waiting for the objective
    Progress progress(hooks.label, config.steps, step);
    while (step < config.steps) {
      check_stop();
      const bool complete = advance(progress);
      const std::string reason = all_gather(watch.stop_reason()).front();
      due = due || step % config.checkpoint_every == 0 || step == config.steps || !reason.empty();
      if (!due || !complete) continue;
      last.save(run, config.keep_checkpoints + (reason.empty() ? 0 : 1));
      if (!reason.empty()) fail_diverged(run, step, reason);
      due = false;
    }
  }
};

}  // namespace

TrainResult train(const TrainConfig& config, Objective& objective, Run& run,
                  const TrainHooks& hooks) {
  const ParameterSet& trainable = objective.trainable();
  AdamW optimizer(config.optimizer, trainable);
  WeightAverage average(trainable, config.average_decay);
  const Start start = restore(objective, optimizer, average, run);
  announce_length(config, start.step, run);
  broadcast_from_first(trainable.tensors());
  LastStep last(objective, optimizer, average, start.step, start.followed);
  RunFacts facts = hooks.facts;
  facts.gradient_clip = config.optimizer.gradient_clip;
  Watch watch(parse_stop_conditions(config.stop_when), facts, config.steps, run);
  if (start.step == 0) {
    for (const RunWarning& warning : hooks.warnings) warn(run, 0, warning);
  }
  Training training{config, hooks, objective, run, optimizer, average, last, watch, start.step};
  const auto work = [&] { training.run_to_end(start.followed); };
  if (hooks.lasting) {
    saving_on_stop(last, run, config.keep_checkpoints, work);
  } else {
    work();
  }
  return {trainable, average.values(), training.step};
}

}  // namespace tiltflow
