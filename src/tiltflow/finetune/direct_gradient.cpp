#include "tiltflow/finetune/direct_gradient.h"

#include <algorithm>
#include <cmath>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {

const std::vector<std::string>& direct_gradient_methods() {
  static const std::vector<std::string> names{"draft",  "alignprop",  "draft-lv",        "refl",
                                              "drtune", "leap-align", "discrete-adjoint"};
  return names;
}

void bind_for(Fields& f, DirectGradientConfig& c, const std::string& method) {
  if (method == "draft") {
    f.value("last", c.last, "steps before the end that have a graph; 0 = all", at_least_integer(0));
    f.value("random_last", c.random_last, "draw 1 .. last of them anew each time");
  }
  if (method == "draft-lv") {
    f.value("copies", c.copies, "end points noised back by one step and stepped again",
            at_least_integer(1));
  }
  if (method == "refl" || method == "drtune") {
    f.value("late_fraction", c.late_fraction, "share of the grid where the stop is drawn",
            between(0.01, 1));
  }
  if (method == "drtune") {
    f.value("graph_steps", c.graph_steps, "steps with a graph before the stop",
            at_least_integer(1));
  }
  if (method == "leap-align") {
    f.value("nested", c.nested, "factor on the gradient through the input of the second jump",
            between(0, 1));
    f.value("tau", c.tau,
            "smallest distance between a jump and the path; samples whose jumps miss by more count "
            "less",
            positive());
  }
  if (method == "discrete-adjoint") return;
  if (method != "leap-align") {
    f.value("kl", c.kl, "weight of the path KL of the steps with a graph", at_least(0));
  }
  f.value("hinged", c.hinged, "max(0, hinge - r) instead of -r: no gradient above the hinge");
  f.value("hinge", c.hinge, "reward above which nothing more is wanted");
  f.value("preserve", c.preserve,
          "weight of the mean squared distance to the base's velocity on the steps with a graph",
          at_least(0));
}

DirectGradient::DirectGradient(std::string method, DirectGradientConfig config)
    : method_(std::move(method)), config_(std::move(config)) {
  if (method_ == "alignprop") {
    config_.last = 0;
    config_.random_last = true;
  }
  if (method_ == "discrete-adjoint") {
    config_ = {};
    config_.last = 0;
    config_.kl = 1;
  }
}

double DirectGradient::training_calls(const TransitionTable& table) const {
  const auto all = static_cast<double>(table.size());
  if (window()) {
    const double last = config_.last == 0 ? all : std::min(all, static_cast<double>(config_.last));
    return config_.random_last ? 0.5 * (last + 1) : last;
  }
  if (method_ == "leap-align") return 2;
  return method_ == "draft-lv" ? 1.0 + static_cast<double>(config_.copies)
         : method_ == "refl"   ? 1.0
                               : 1.0 + static_cast<double>(config_.graph_steps);
}

void DirectGradient::begin_step(const FinetuneContext& context, std::int64_t step, std::int64_t) {
  const std::int64_t steps = context.table.size();
  if (config_.kl > 0) {
    for (const Transition& s : context.table.steps) {
      if (!(s.s > 0)) {
        fail(ErrorKind::kConfig,
             cat("method.kl needs noise in every step; sampler ", context.table.name,
                 " has none at t = ", s.t),
             "set method.kl = 0 or use a stochastic sampler");
      }
    }
  }
  const auto draw = [&](std::int64_t low, std::int64_t high) {
    return context.streams.choose(Purpose::kSubset, static_cast<std::uint32_t>(step), low, high, 1)
        .front();
  };  // [low, high)
  std::int64_t stop = steps;
  std::int64_t begin = steps - 1;
  if (method_ == "leap-align") {
    if (steps < 2) fail(ErrorKind::kConfig, "leap-align needs two sampler steps or more");
    const std::vector<std::int64_t> two =
        context.streams.choose(Purpose::kSubset, static_cast<std::uint32_t>(step), 0, steps, 2);
    begin_ = static_cast<std::size_t>(two[0]);
    stop_ = static_cast<std::size_t>(two[1]);
    return;
  }
  if (window()) {
    std::int64_t last = config_.last == 0 ? steps : std::min(config_.last, steps);
    if (config_.random_last) last = draw(1, last + 1);
    begin = steps - last;
  } else if (method_ == "refl" || method_ == "drtune") {
    const std::int64_t late =
        std::max<std::int64_t>(1, std::llround(config_.late_fraction * static_cast<double>(steps)));
    stop = draw(steps - late, steps);  // the prediction is made at X_stop
    begin = method_ == "refl" ? stop : 0;
  }
  begin_ = static_cast<std::size_t>(begin);
  stop_ = static_cast<std::size_t>(stop);
  graph_.assign(static_cast<std::size_t>(steps), false);
  const std::int64_t wanted =
      method_ == "drtune" ? std::min(config_.graph_steps, stop) : stop - begin;
  for (std::int64_t i = 0; i < wanted; ++i) {
    graph_[static_cast<std::size_t>(begin +
                                    (stop - begin) * i / std::max<std::int64_t>(1, wanted))] = true;
  }
}

Batch DirectGradient::collect(const FinetuneContext& context, std::int64_t step, std::int64_t first,
                              std::int64_t n, bool will_reuse) {
  if (will_reuse) {
    fail(ErrorKind::kConfig,
         cat(method_, " needs the path of the current policy: buffer_passes must be 1"));
  }
  const auto key = static_cast<std::uint32_t>(step);
  Batch batch;
  batch.first = first;
  batch.n = n;
  batch.labels = context.labels(first, n);
  const at::Tensor x_0 =
      prior_sample(context.streams, key, first, n, context.sample_shape, context.dtype);
  const NoiseSource noise = keyed_noise(context.streams, key, first, x_0);
  if (context.extra_reward) batch.start = x_0;
  // Only the states before the part with a graph are made here.
  const at::NoGradGuard no_grad;
  if (method_ == "leap-align") {
    RolloutOptions options;
    options.keep_states = true;
    const Trajectory path = rollout(context.policy.collector(), context.table, x_0,
                                    Condition{batch.labels}, noise, options);
    batch.states = {path.states[begin_], path.states[stop_], path.states.back()};
    return batch;
  }
  TransitionTable head = context.table;
  head.steps.resize(begin_);
  batch.states.push_back(
      rollout(context.policy.collector(), head, x_0, Condition{batch.labels}, noise).last);
  for (std::size_t k = begin_; k < context.table.steps.size(); ++k) {
    batch.noises.push_back(context.table.steps[k].s > 0 ? noise(static_cast<int>(k))
                                                        : at::zeros_like(x_0));
  }
  if (method_ == "draft-lv") {
    for (std::int64_t i = 0; i < config_.copies; ++i) {
      batch.targets.push_back(context.streams.normal(Purpose::kSmoothing, key,
                                                     static_cast<std::uint32_t>(i), first, n,
                                                     context.sample_shape, context.dtype));
    }
  }
  return batch;
}

namespace {

void add_to(at::Tensor& sum, const at::Tensor& term) { sum = sum.defined() ? sum + term : term; }

// The value of one tensor with the gradient of another.
at::Tensor straight_through(const at::Tensor& value, const at::Tensor& gradient) {
  return gradient + (value - gradient).detach();
}

}  // namespace

struct DirectGradient::Pass {
  const DirectGradient& method;
  const FinetuneContext& context;
  const Batch& batch;
  const DirectGradientConfig& config{method.config_};
  Condition condition{batch.labels};
  at::Tensor cost{};  // path KL over the steps with a graph, [n]
  at::Tensor keep{};  // squared distance to the base's velocity, [n]

  bool is(const char* name) const { return method.method_ == name; }
  const std::vector<Transition>& steps() const { return context.table.steps; }

  // v at (x, t_k), with the terms that tie it to the base.
  at::Tensor velocity(const at::Tensor& state, double t, const Transition* s) {
    const at::Tensor time = time_tensor(t, state);
    const at::Tensor v = context.policy.tuned->velocity(state, time, condition);
    if ((config.kl <= 0 || !s) && config.preserve <= 0) return v;
    // With the graph of the state: its Jacobian is part of the gradient.
    const at::Tensor base = context.policy.base->velocity(state, time, condition);
    if (config.kl > 0 && s) add_to(cost, control_cost(*s, v, base));
    if (config.preserve > 0) add_to(keep, (v - base).flatten(1).square().mean(1));
    return v;
  }

  // leap-align: two jumps along the path; `jumped`: how far they are from it, [n].
  at::Tensor leap(at::Tensor& jumped) {
    const double t_k = steps()[method.begin_].t;
    const double t_j = steps()[method.stop_].t;
    const auto distance = [&](const at::Tensor& a, const at::Tensor& b) {
      return (a - b).detach().flatten(1).abs().mean(1).clamp_min(config.tau);
    };
    const at::Tensor& x = batch.states[0];
    const at::Tensor jump = x + (t_j - t_k) * velocity(x, t_k, nullptr);
    const at::Tensor x_j = straight_through(batch.states[1], jump);
    const at::Tensor input = config.nested * x_j + (1 - config.nested) * x_j.detach();
    const at::Tensor end = x_j + (context.table.t_end - t_j) * velocity(input, t_j, nullptr);
    jumped = distance(jump, batch.states[1]) + distance(end, batch.states[2]);
    return straight_through(batch.states[2], end);
  }

  // The steps [begin, stop) once more; velocities without a graph are constants.
  at::Tensor walk() {
    at::Tensor x = batch.states[0];
    for (std::size_t k = method.begin_; k < method.stop_; ++k) {
      const Transition& s = steps()[k];
      const at::Tensor seen = is("drtune") ? x.detach() : x;
      at::Tensor v;
      if (method.graph_[k]) {
        v = velocity(seen, s.t, &s);
      } else {
        const at::NoGradGuard no_grad;
        v = context.policy.tuned->velocity(seen, time_tensor(s.t, x), condition);
      }
      x = x * s.p + v * s.c + batch.noises[k - method.begin_] * s.s;
    }
    return x;
  }

  // The data prediction at the stop.
  at::Tensor predicted(const at::Tensor& x) {
    const double t = steps()[method.stop_].t;
    return data_from_velocity(context.path.at(t), x,
                              velocity(is("drtune") ? x.detach() : x, t, nullptr));
  }

  // draft-lv: the end noised back to the last step, and that step again, for every copy.
  void add_copies(const at::Tensor& x, std::vector<at::Tensor>& ends) {
    const Transition& s = steps().back();
    const PathPoint here = context.path.at(s.t);
    const PathPoint end = context.path.at(context.table.t_end);
    const double a = here.alpha / end.alpha;
    const double b = std::sqrt(std::max(0.0, here.beta * here.beta - a * a * end.beta * end.beta));
    for (const at::Tensor& noise : batch.targets) {
      const at::Tensor back = x.detach() * a + noise * b;
      ends.push_back(back * s.p + velocity(back, s.t, &s) * s.c + batch.noises.back() * s.s);
    }
  }

  at::Tensor mean_reward(const std::vector<at::Tensor>& ends) const {
    at::Tensor rewards;
    for (const at::Tensor& end : ends) {
      add_to(rewards, context.reward.score_with_graph(end, batch.labels));
      if (context.extra_reward)
        add_to(rewards, context.extra_reward(batch.start, end, batch.labels));
    }
    return rewards / static_cast<double>(ends.size());
  }
};

LossReport DirectGradient::loss(const FinetuneContext& context, const Batch& batch,
                                std::int64_t total) {
  Pass pass{*this, context, batch};
  at::Tensor jumped;
  const at::Tensor x = method_ == "leap-align" ? pass.leap(jumped) : pass.walk();
  std::vector<at::Tensor> ends{x};
  if (method_ == "refl" || method_ == "drtune") ends[0] = pass.predicted(x);
  if (method_ == "draft-lv") pass.add_copies(x, ends);
  const at::Tensor rewards = pass.mean_reward(ends);
  const at::Tensor& cost = pass.cost;
  at::Tensor each = config_.hinged ? (config_.hinge - rewards).clamp_min(0) : -rewards;
  if (jumped.defined()) each = each / jumped;
  if (cost.defined()) each = each + (method_ == "discrete-adjoint" ? 1.0 : config_.kl) * cost;
  if (pass.keep.defined()) each = each + config_.preserve * pass.keep;
  LossReport report;
  report.loss = each.sum() / static_cast<double>(total);
  Batch seen;
  seen.n = batch.n;
  seen.rewards = rewards.detach();
  if (cost.defined() && begin_ == 0) seen.control_cost = cost.detach();
  add_batch_metrics(report, seen);
  return report;
}

}  // namespace tiltflow
