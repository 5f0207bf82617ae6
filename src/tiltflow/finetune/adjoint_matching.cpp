#include "tiltflow/finetune/adjoint_matching.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/sampler/lean_adjoint.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/tensor/process_group.h"

namespace tiltflow {

const std::vector<std::string> kPresets{"exact", "paper", "official-sd", "deterministic-control"};
constexpr double kMaxPathLogWeight = 3;  // nats; keeps one path from making a whole step

void bind(Fields& f, AdjointMatchingConfig& c) {
  f.value("preset", c.preset,
          "exact (no discretisation bias), paper, official-sd, deterministic-control (ODE "
          "rollouts, the last 3 steps; not the tilted law)",
          one_of(kPresets));
  if (std::find(kPresets.begin(), kPresets.end(), c.preset) != kPresets.end()) {
    c = adjoint_matching_preset(c.preset, c.grid_steps);
  }
  f.value("pairing", c.pairing,
          "adjoint in the loss of step k: next (a_{k+1}), same (a_k), later (paper's eq. 41)",
          one_of({"next", "same", "later"}));
  f.value("terminal", c.terminal,
          "reward gradient at the last state (last) or at a noiseless last step (noiseless)",
          one_of({"last", "noiseless"}));
  f.value("loss_steps", c.loss_steps, "time steps per iteration in the loss; 0 = all",
          at_least_integer(0));
  f.value("times", c.times,
          "shared: one subset of times for the whole batch; stratified: every sample its own, all "
          "times equally often",
          one_of({"shared", "stratified"}));
  f.value("late_fraction", c.late_fraction, "share of the grid that counts as late", between(0, 1));
  f.value("late_steps", c.late_steps, "how many of the loss steps come from the late part",
          at_least_integer(0));
  f.value(
      "time_weighting", c.time_weighting,
      "0: as published; towards 1 early steps count more (same optimum, faster large-scale change)",
      between(0, 1));
  f.value("path_weighting", c.path_weighting,
          "exponent of the path weights dP*/dP in the loss: 0 as published, 1 regresses on the "
          "adjoint's mean under p* itself (same optimum, no policy lag)",
          between(0, 1));
  f.value("adjoint_stride", c.adjoint_stride,
          "one Jacobian of the base serves this many steps of the adjoint: cheaper, biased "
          "(docs/mathematics.md); 1 = exact",
          at_least_integer(1));
  f.value("clip_constant", c.clip_constant, "no gradient from losses above this; 0 = off",
          at_least(0));
  f.value("clip_quantile", c.clip_quantile,
          "no gradient from samples above this running quantile of sqrt(loss); 0 = off",
          between(0, 1));
  f.value("clip_per_time", c.clip_per_time, "one quantile per time step");
  f.value("clip_decay", c.clip_decay, "decay of the running quantile", between(0, 0.9999));
  f.value("smoothing", c.smoothing,
          "reward gradients averaged over this many perturbed states; 0 = off",
          at_least_integer(0));
  f.value("smoothing_deviation", c.smoothing_deviation, "deviation of the perturbations",
          positive());
  f.value("noise", c.noise,
          "false: rollouts without noise, trained as a deterministic control problem (not the "
          "tilted law)");
  f.value("keep_graphs", c.keep_graphs,
          "with shared times: reuse the rollout's velocity graphs in the loss (fewer evaluations, "
          "more memory)");
}

AdjointMatchingConfig adjoint_matching_preset(const std::string& name, std::int64_t steps) {
  AdjointMatchingConfig c;
  c.preset = name;
  c.grid_steps = steps;
  if (name == "exact") {
    c.loss_steps = std::min<std::int64_t>(steps, 10);
  } else if (name == "paper") {  // half of the steps: 25 % drawn from the first three quarters, all
                                 // of the last quarter
    c.pairing = "later";
    c.terminal = "noiseless";
    c.late_fraction = 0.25;
    c.late_steps = (steps + 3) / 4;
    c.loss_steps = 2 * c.late_steps;
  } else if (name == "official-sd") {  // 2 of the first 60 %, 2 of the last 40 %; pooled quantile
    c.pairing = "same";
    c.terminal = "last";
    c.late_fraction = 0.4;
    c.late_steps = 2;
    c.loss_steps = 4;
    c.clip_quantile = 0.9;
    c.clip_per_time = false;
    c.clip_decay = 0.9;
  } else if (name == "deterministic-control") {  // ODE rollouts, trained on the last three steps
    c.noise = false;
    c.loss_steps = c.late_steps = std::min<std::int64_t>(steps, 3);
    c.late_fraction = static_cast<double>(c.late_steps) / static_cast<double>(steps);
  } else {
    fail(ErrorKind::kConfig, cat("preset '", name, "' is unknown", did_you_mean(name, kPresets)));
  }
  return c;
}

AdjointMatching::AdjointMatching(AdjointMatchingConfig config) : config_(std::move(config)) {
  if (config_.late_steps > config_.loss_steps && config_.loss_steps > 0) {
    fail(ErrorKind::kConfig, "method.late_steps exceeds method.loss_steps");
  }
  if (config_.times == "stratified" && config_.late_steps > 0) {
    fail(ErrorKind::kConfig, "method.late_steps needs method.times = \"shared\"");
  }
}

double AdjointMatching::training_calls(const TransitionTable& table) const {
  return static_cast<double>(config_.loss_steps == 0
                                 ? table.size()
                                 : std::min<std::int64_t>(config_.loss_steps, table.size()));
}

void AdjointMatching::begin_step(const FinetuneContext& context, std::int64_t step,
                                 std::int64_t pass) {
  const std::int64_t steps = context.table.size();
  for (const Transition& transition : context.table.steps) {
    if (!(transition.s > 0)) {
      fail(ErrorKind::kConfig,
           cat("sampler ", context.table.name, " has a noiseless step at t = ", transition.t,
               ": it cannot be controlled"),
           "use auto, euler, exponential or ancestral");
    }
  }
  if (config_.pairing == "later" && !context.table.at_end) {
    fail(ErrorKind::kConfig,
         "pairing 'later' is the paper's; it needs sampler.name = \"euler-paper\"");
  }
  grid_size_ = static_cast<std::size_t>(steps);
  thresholds_.resize(config_.clip_per_time ? grid_size_ : 1);
  observed_.clear();
  pass_ = pass;
  wanted_ = config_.loss_steps == 0 ? steps : std::min(config_.loss_steps, steps);
  if (config_.times == "stratified") {
    subset_ = context.streams.permutation(Purpose::kSubset,
                                          static_cast<std::uint32_t>(2 * (step - pass)), steps);
    return;
  }
  const std::int64_t boundary =
      steps - std::llround(config_.late_fraction * static_cast<double>(steps));
  const std::int64_t late = std::min(config_.late_steps, steps - boundary);
  const bool split = config_.late_fraction > 0;
  const auto key = static_cast<std::uint32_t>(2 * step);
  subset_ =
      context.streams.choose(Purpose::kSubset, key, 0, split ? boundary : steps, wanted_ - late);
  const std::vector<std::int64_t> tail =
      context.streams.choose(Purpose::kSubset, key + 1, boundary, steps, late);
  if (split) subset_.insert(subset_.end(), tail.begin(), tail.end());
}

// Stratified: sample i takes the next `wanted_` entries of the common order, starting at i, so that
// a batch covers all times evenly and repeated passes show every sample all its times.
std::vector<AdjointMatching::Drawn> AdjointMatching::drawn(const Batch& batch) const {
  std::vector<Drawn> out;
  if (config_.times == "shared") {
    for (const std::int64_t k : subset_) out.push_back({static_cast<std::size_t>(k), {}});
    return out;
  }
  std::vector<std::vector<std::int64_t>> rows(grid_size_);
  for (std::int64_t i = 0; i < batch.n; ++i) {
    for (std::int64_t j = 0; j < wanted_; ++j) {
      const std::int64_t place =
          (batch.first + i + pass_ * wanted_ + j) % static_cast<std::int64_t>(grid_size_);
      rows[static_cast<std::size_t>(subset_[static_cast<std::size_t>(place)])].push_back(i);
    }
  }
  for (std::size_t k = 0; k < grid_size_; ++k) {
    if (!rows[k].empty()) out.push_back({k, at::tensor(rows[k], at::kLong)});
  }
  return out;
}

// Kept from the rollout, or recomputed in one call over all drawn steps.
std::vector<at::Tensor> AdjointMatching::velocities_with_graph(
    const FinetuneContext& context, const Batch& batch, const std::vector<Drawn>& draws) const {
  std::vector<at::Tensor> v, states, times, labels;
  std::vector<std::int64_t> sizes;
  for (const Drawn& d : draws) {
    if (!batch.with_graph.empty()) {
      v.push_back(batch.with_graph[d.k]);
      continue;
    }
    states.push_back(d.of(batch.states[d.k]));
    sizes.push_back(states.back().size(0));
    times.push_back(time_tensor(context.table.steps[d.k].t, states.back()));
    if (batch.labels.defined()) labels.push_back(d.of(batch.labels));
  }
  if (!batch.with_graph.empty()) return v;
  const Condition condition{labels.empty() ? at::Tensor() : at::cat(labels)};
  return context.policy.tuned->velocity(at::cat(states), at::cat(times), condition)
      .split_with_sizes(sizes);
}

// The minimiser of every step is its own, so a positive weight per step moves no optimum. Mean 1.
std::vector<double> AdjointMatching::time_weights(const TransitionTable& table) const {
  std::vector<double> out;
  double mean = 0;
  for (const Transition& s : table.steps) {
    out.push_back(std::pow(s.s / s.c, 2 * config_.time_weighting));
    mean += out.back() / static_cast<double>(table.steps.size());
  }
  for (double& w : out) w /= mean;
  return out;
}

at::Tensor AdjointMatching::terminal_adjoint(const FinetuneContext& context, std::int64_t step,
                                             const Batch& batch, const Condition& condition,
                                             at::Tensor& rewards) const {
  const TransitionTable& table = context.table;
  at::Tensor state = batch.states.back();
  if (config_.terminal == "noiseless") {
    const double t = table.steps.back().t;
    const at::Tensor& before = batch.states[batch.states.size() - 2];
    state = data_from_velocity(
        context.path.at(t), before,
        context.policy.base->velocity(before, time_tensor(t, before), condition));
  }
  at::Tensor gradient;
  if (config_.smoothing > 0) {
    rewards = context.reward.score(state, batch.labels);
    for (std::int64_t i = 0; i < config_.smoothing; ++i) {
      const at::Tensor noise = context.streams.normal(
          Purpose::kSmoothing, static_cast<std::uint32_t>(step), static_cast<std::uint32_t>(i),
          batch.first, batch.n, context.sample_shape, context.dtype);
      const at::Tensor g =
          context.reward
              .score_and_gradient(state + noise * config_.smoothing_deviation, batch.labels)
              .gradient;
      gradient = gradient.defined() ? gradient + g : g;
    }
    gradient = gradient / static_cast<double>(config_.smoothing);
  } else {
    ScoreAndGradient result = context.reward.score_and_gradient(state, batch.labels);
    gradient = result.gradient;
    rewards = result.score;
  }
  at::Tensor adjoint = -gradient;
  if (config_.pairing ==
      "later") {  // eq. 41 carries one more factor, from the Jacobian at the end point
    const Transition& end = *table.at_end;
    const Vjp pass = context.policy.base->vjp(batch.states.back(), time_tensor(end.t, adjoint),
                                              condition, adjoint);
    adjoint = adjoint * end.p + pass.input_gradient * end.c;
  }
  return adjoint;
}

Batch AdjointMatching::collect(const FinetuneContext& context, std::int64_t step,
                               std::int64_t first, std::int64_t n, bool will_reuse) {
  Batch batch;
  batch.first = first;
  batch.n = n;
  batch.labels = context.labels(first, n);
  const Condition condition{batch.labels};
  const at::Tensor x_0 = prior_sample(context.streams, static_cast<std::uint32_t>(step), first, n,
                                      context.sample_shape, context.dtype);
  RolloutOptions options;
  options.keep_states = options.keep_velocities = options.keep_noises = true;
  if (config_.keep_graphs && !context.policy.rollout && config_.times == "shared" && !will_reuse) {
    options.graphs.assign(grid_size_, false);
    for (const std::int64_t k : subset_) options.graphs[static_cast<std::size_t>(k)] = true;
  }
  const NoiseSource noise =
      config_.noise ? keyed_noise(context.streams, static_cast<std::uint32_t>(step), first, x_0)
                    : [x_0](int) { return at::zeros_like(x_0); };
  Trajectory path =
      rollout(context.policy.collector(), context.table, x_0, condition, noise, options);
  batch.states = std::move(path.states);
  batch.tuned_velocities = std::move(path.velocities);
  batch.noises = std::move(path.noises);
  batch.with_graph = std::move(path.with_graph);

  const at::NoGradGuard no_grad;
  const bool same = config_.pairing == "same";
  // When every loss step is late, nothing before them is needed.
  const bool truncated = !config_.noise && config_.times == "shared" && config_.late_steps > 0 &&
                         config_.late_steps == config_.loss_steps;
  const std::size_t begin =
      truncated ? grid_size_ - static_cast<std::size_t>(std::llround(
                                   config_.late_fraction * static_cast<double>(grid_size_)))
                : 0;
  AdjointPass pass = lean_adjoint(*context.policy.base, context.table, batch.states, condition,
                                  terminal_adjoint(context, step, batch, condition, batch.rewards),
                                  {.to_start = same,
                                   .first = begin,
                                   .stride = static_cast<std::size_t>(config_.adjoint_stride)});
  batch.base_velocities = std::move(pass.base_velocities);
  for (std::size_t k = 0; k < grid_size_; ++k) {
    batch.targets.push_back(pass.adjoints[same ? k : k + 1]);
  }
  batch.log_weights = measure_against_base(context, batch, begin) + batch.rewards.to(at::kDouble);
  batch.noises.clear();
  return batch;
}

namespace {

// Metrics of the collecting policy over all K steps: exact for the chain.
void add_path_metrics(const FinetuneContext& context, const Batch& batch,
                      const at::Tensor& log_weight, LossReport& report) {
  add_batch_metrics(report, batch);
  const double n = static_cast<double>(batch.n);
  const at::Tensor weight = log_weight.clamp(-50, 50).exp();
  const at::Tensor full_weight = (batch.log_weights - context.log_z).clamp_max(50).exp();
  report.metrics.add("path_weight", full_weight.sum().item<double>(), n);
  report.metrics.add("path_weight_square", full_weight.square().sum().item<double>(), n);
  report.metrics.add("weight", weight.sum().item<double>(), n);
  report.metrics.add("weight_square", weight.square().sum().item<double>(), n);
}

}  // namespace

at::Tensor AdjointMatching::kept_rows(std::size_t k, const at::Tensor& per_sample,
                                      const at::Tensor& root) const {
  at::Tensor keep = at::ones_like(root);
  if (config_.clip_constant > 0) keep = keep * (per_sample.detach() <= config_.clip_constant);
  const double threshold =
      config_.clip_quantile > 0 ? thresholds_[config_.clip_per_time ? k : 0] : 0;
  return threshold > 0 ? keep * (root < threshold) : keep;
}

void AdjointMatching::add_time_metrics(MetricSums& metrics, const Transition& step, const Drawn& d,
                                       const Batch& batch, const at::Tensor& control,
                                       const at::Tensor& per_sample) {
  const double n = static_cast<double>(per_sample.size(0));
  const std::string time = fixed(step.t, 2);
  const auto norm = [](const at::Tensor& x) {
    return x.flatten(1).norm(2, 1).sum().item<double>();
  };
  const double target = norm(d.of(batch.targets[d.k]));
  metrics.add(cat("loss_t", time), per_sample.sum().item<double>(), n);
  metrics.add(cat("control_norm_t", time), norm(control.detach()), n);
  metrics.add(cat("state_norm_t", time), norm(d.of(batch.states[d.k])), n);
  metrics.add(cat("target_norm_t", time), target * step.s, n);
  metrics.add(cat("adjoint_norm_t", time), target, n);
}

// Adds what the current policy makes of a step's log density, against the collecting one.
void AdjointMatching::add_density_change(const Transition& step, const Drawn& d, const Batch& batch,
                                         const at::Tensor& velocity, at::Tensor& log_weight) {
  const at::NoGradGuard no_grad;
  const at::Tensor x = d.of(batch.states[d.k]);
  const at::Tensor next = d.of(batch.states[d.k + 1]);
  const at::Tensor change =
      transition_log_density(step, x, velocity.detach(), next).to(at::kDouble) -
      transition_log_density(step, x, d.of(batch.tuned_velocities[d.k]), next).to(at::kDouble);
  if (d.rows.defined()) {
    log_weight.index_add_(0, d.rows, change);
  } else {
    log_weight += change;
  }
}

LossReport AdjointMatching::loss(const FinetuneContext& context, const Batch& batch,
                                 std::int64_t total) {
  const std::vector<Transition>& steps = context.table.steps;
  const std::vector<Drawn> draws = drawn(batch);
  const std::vector<at::Tensor> v = velocities_with_graph(context, batch, draws);
  const std::vector<double> weights = time_weights(context.table);
  const at::Tensor path_weight = ((batch.log_weights - context.log_z) * config_.path_weighting)
                                     .clamp_max(kMaxPathLogWeight)
                                     .exp()
                                     .to(batch.states[0].scalar_type());

  LossReport report;
  std::map<std::size_t, std::vector<float>> roots;
  at::Tensor log_weight =
      at::zeros({batch.n}, at::kDouble);  // of the current policy against the collecting one
  for (std::size_t i = 0; i < draws.size(); ++i) {
    const Drawn& d = draws[i];
    const Transition& s = steps[d.k];
    const at::Tensor control =
        (v[i] - d.of(batch.base_velocities[d.k])) * (s.c / s.s);  // u sqrt(h)
    const at::Tensor residual = control + d.of(batch.targets[d.k]) * s.s;
    const at::Tensor per_sample = residual.flatten(1).square().sum(1);  // [rows]
    const at::Tensor root = per_sample.detach().sqrt();
    const at::Tensor keep = kept_rows(d.k, per_sample, root);
    const at::Tensor term = (per_sample * keep * d.of(path_weight)).sum() *
                            (weights[d.k] / static_cast<double>(total * wanted_));
    report.loss = report.loss.defined() ? report.loss + term : term;
    const double n = static_cast<double>(per_sample.size(0));
    report.metrics.add("clip_rate", n - keep.sum().item<double>(), n);
    add_time_metrics(report.metrics, s, d, batch, control, per_sample);
    if (batch.with_graph.empty()) add_density_change(s, d, batch, v[i], log_weight);
    if (config_.clip_quantile > 0) {
      const at::Tensor values = root.to(at::kFloat).contiguous();
      roots[d.k].assign(values.data_ptr<float>(), values.data_ptr<float>() + values.numel());
    }
  }
  if (config_.clip_quantile > 0) {
    const std::lock_guard lock(mutex_);
    observed_[batch.first] = std::move(roots);
  }
  add_path_metrics(context, batch,
                   log_weight * (static_cast<double>(steps.size()) / static_cast<double>(wanted_)),
                   report);
  return report;
}

// Every process sees the roots of all samples, so that all clip alike.
void AdjointMatching::gather_observed() {
  if (world_size() == 1) return;
  std::string mine;
  for (const auto& [first, roots] : observed_) {
    for (const auto& [k, values] : roots) {
      const std::int64_t head[3] = {first, static_cast<std::int64_t>(k),
                                    static_cast<std::int64_t>(values.size())};
      mine.append(reinterpret_cast<const char*>(head), sizeof head);
      mine.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
    }
  }
  observed_.clear();
  for (const std::string& bytes : all_gather(mine)) {
    for (std::size_t place = 0; place < bytes.size();) {
      std::int64_t head[3];
      std::memcpy(head, bytes.data() + place, sizeof head);
      place += sizeof head;
      std::vector<float>& values = observed_[head[0]][static_cast<std::size_t>(head[1])];
      values.resize(static_cast<std::size_t>(head[2]));
      std::memcpy(values.data(), bytes.data() + place, values.size() * sizeof(float));
      place += values.size() * sizeof(float);
    }
  }
}

void AdjointMatching::end_step(std::map<std::string, double>& metrics) {
  finish_batch_metrics(metrics);
  metrics["ess"] = metrics["weight"] * metrics["weight"] /
                   std::max(1e-300, metrics["weight_square"]);  // share of the batch
  metrics["path_ess"] = metrics["path_weight"] * metrics["path_weight"] /
                        std::max(1e-300, metrics["path_weight_square"]);  // 1 at the optimum
  for (const char* name : {"path_weight_square", "weight", "weight_square"}) metrics.erase(name);
  if (config_.clip_quantile <= 0) return;
  gather_observed();
  // Pool in sample order, then move the running quantiles; the first batch sets them.
  std::vector<std::vector<float>> pooled(thresholds_.size());
  for (const auto& [first, roots] : observed_) {
    for (const auto& [k, values] : roots) {
      std::vector<float>& pool = pooled[config_.clip_per_time ? k : 0];
      pool.insert(pool.end(), values.begin(), values.end());
    }
  }
  for (std::size_t j = 0; j < pooled.size(); ++j) {
    if (pooled[j].empty()) continue;
    const double q =
        at::quantile(at::tensor(pooled[j], at::kDouble), config_.clip_quantile).item<double>();
    thresholds_[j] =
        thresholds_[j] > 0 ? config_.clip_decay * thresholds_[j] + (1 - config_.clip_decay) * q : q;
  }
}

ParameterSet AdjointMatching::state() const {
  ParameterSet out;
  if (config_.clip_quantile > 0) out.add("clip_thresholds", at::tensor(thresholds_, at::kDouble));
  return out;
}

void AdjointMatching::restore(const ParameterSet& state) {
  if (config_.clip_quantile <= 0) return;
  const at::Tensor values = state.at("clip_thresholds").contiguous();
  thresholds_.assign(values.data_ptr<double>(), values.data_ptr<double>() + values.numel());
}

}  // namespace tiltflow
