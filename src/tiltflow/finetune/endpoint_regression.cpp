#include "tiltflow/finetune/endpoint_regression.h"

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "tiltflow/base/count.h"
#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/finetune/noising.h"
#include "tiltflow/finetune/path_weights.h"
#include "tiltflow/io/tensor_file.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

constexpr double kMaxEndpointLogWeight = 5;  // nats; keeps one sample from making a whole step

at::Tensor mean_square(const at::Tensor& x) { return x.flatten(1).square().mean(1); }

// One number per sample, shaped to multiply samples.
at::Tensor wide(const at::Tensor& x, const at::Tensor& like) {
  std::vector<std::int64_t> shape(static_cast<std::size_t>(like.dim()), 1);
  shape[0] = x.size(0);
  return x.to(like.scalar_type()).view(shape);
}

ParameterSet read_pairs(const std::string& file, const std::vector<std::int64_t>& shape) {
  ParameterSet out = read_tensors(file).tensors;
  for (const char* name : {"chosen", "rejected"}) {
    if (!out.contains(name)) {
      fail(ErrorKind::kBadFile, cat(file, ": no tensor '", name, "'"),
           "a file of pairs holds chosen and rejected, [N, ...] each, as the model's states "
           "(pixels in [-1, 1])");
    }
    const at::Tensor& x = out.at(name);
    if (x.dim() < 1 || x.size(0) < 1 || x.sizes().slice(1) != at::IntArrayRef(shape) ||
        !x.is_floating_point()) {
      fail(ErrorKind::kBadFile,
           cat(file, ": '", name, "' is not a row of samples of the model's shape"));
    }
    require_finite(x, cat(file, ": tensor '", name, "'"));
  }
  const std::int64_t n = out.at("chosen").size(0);
  if (out.at("rejected").size(0) != n) {
    fail(ErrorKind::kBadFile,
         cat(file, ": ", n, " chosen samples, ", out.at("rejected").size(0), " rejected ones"));
  }
  if (out.contains("labels") && (out.at("labels").scalar_type() != at::kLong ||
                                 out.at("labels").sizes() != at::IntArrayRef{n})) {
    fail(ErrorKind::kBadFile, cat(file, ": labels are not ", n, " whole numbers (int64)"));
  }
  return out;
}

}  // namespace

const std::vector<std::string>& endpoint_methods() {
  static const std::vector<std::string> names{"rwr",
                                              "best-of-group",
                                              "diffusion-nft",
                                              "advantage-flow",
                                              "advantage-weighted-matching",
                                              "ram",
                                              "dpo",
                                              "efficient-adjoint-matching"};
  return names;
}

void bind_for(Fields& f, EndpointConfig& c, const std::string& method) {
  f.value("rollouts", c.rollouts, "end points of the policy or of the base",
          one_of({"policy", "base"}));
  f.value("noisings", c.noisings, "times an end point is noised anew", at_least_integer(1));
  f.value("preserve", c.preserve, "weight of the squared distance to the base's velocity",
          at_least(0));
  if (method == "rwr") {
    f.value("weights", c.weights,
            "reward: exp(tau r); path: also the density ratio of base and policy paths, whose "
            "optimum is the tilted law",
            one_of({"reward", "path"}));
    f.value("tau", c.tau, "factor on the reward", positive());
    f.value("trust_region", c.trust_region,
            "weights are tempered to stay this many nats from equal ones; 0 = off", at_least(0));
    return;
  }
  if (method == "efficient-adjoint-matching") return;
  bind(f, c.advantage);
  bind(f, c.screening);
  if (method == "diffusion-nft") {
    f.value("strength", c.strength, "b: the step is divided by it", positive());
  }
  if (method == "advantage-weighted-matching") {
    f.value("clip", c.clip,
            "ratios exp(error before - error now) beyond 1 +- clip get no gradient; 0 = none",
            at_least(0));
  }
  if (method == "ram") f.value("strength", c.strength, "factor on the advantage", positive());
  if (method == "advantage-flow") {
    f.value("gamma", c.gamma, "weight of the distance to the policy before; larger: smaller steps",
            positive());
  }
  if (method == "diffusion-nft" || method == "advantage-flow") {
    f.value("self_weight", c.self_weight,
            "divide by the mean absolute error of the data prediction");
  }
  if (method == "dpo") {
    f.value("beta", c.beta, "sharpness of the preference", positive());
    f.value("pairs", c.pairs,
            "offline: safetensors with chosen and rejected [N, ...] (and labels [N]) to learn from "
            "instead of rollouts; group is then 2");
    f.value("soft_labels", c.soft_labels, "preferences sigmoid(r_best - r_worst) instead of 1");
  }
}

EndpointRegression::EndpointRegression(std::string method, EndpointConfig config)
    : method_(std::move(method)), config_(std::move(config)) {
  if (!config_.pairs.empty()) {
    config_.advantage.group = 2;
    if (!std::filesystem::exists(config_.pairs)) {
      fail(ErrorKind::kBadFile, cat("method.pairs: ", config_.pairs, " is not there"));
    }
    if (config_.screening.candidates > 0) {
      fail(ErrorKind::kConfig, "method.pairs and method.candidates: stored pairs are not screened");
    }
  }
  if (config_.screening.candidates > 0 && config_.screening.candidates < config_.advantage.group) {
    fail(ErrorKind::kConfig,
         cat("method.candidates = ", config_.screening.candidates,
             " is less than method.group = ", config_.advantage.group),
         "draft more seeds than are kept, e.g. four times as many");
  }
  if (config_.weights == "path" && config_.rollouts == "base") {
    fail(ErrorKind::kConfig,
         "method.weights = \"path\" with end points of the base: their weights are exp(tau r) "
         "already");
  }
  if (method_ == "advantage-flow" && config_.advantage.clip > 0) {
    config_.advantage.clip = std::min(config_.advantage.clip, 1.0);
  }
  if (method_ == "advantage-flow" && config_.gamma + config_.preserve <= 1) {
    fail(ErrorKind::kConfig,
         "advantage-flow: method.gamma + method.preserve must exceed 1, or advantages of -1 make "
         "the loss unbounded");
  }
  if ((method_ == "dpo" || method_ == "best-of-group") && config_.advantage.group < 2) {
    fail(ErrorKind::kConfig, method_ + " compares samples: method.group must be 2 or more");
  }
}

std::int64_t EndpointRegression::group_size() const {
  const bool picks =
      method_ == "dpo" || method_ == "best-of-group" || config_.screening.candidates > 0;
  const bool needed = compares() && (picks || config_.advantage.kind != "value");
  return needed ? config_.advantage.group : 1;
}

void EndpointRegression::check_files(const std::vector<std::int64_t>& sample_shape) const {
  if (!config_.pairs.empty()) read_pairs(config_.pairs, sample_shape);
}

// Rows of the file in turn of a keyed draw: chosen, rejected, chosen, ...
at::Tensor EndpointRegression::stored_pairs(const FinetuneContext& context, std::uint32_t key,
                                            Batch& batch) {
  if (batch.n % 2 || batch.first % 2) {
    fail(ErrorKind::kConfig, cat(counted(batch.n, "sample"), " in a piece of work are no pairs"),
         "choose even numbers for batch and micro_batch");
  }
  {
    const std::lock_guard lock(mutex_);
    if (!pairs_.contains("chosen")) pairs_ = read_pairs(config_.pairs, context.sample_shape);
  }
  const at::Tensor& chosen = pairs_.at("chosen");
  const at::Tensor& rejected = pairs_.at("rejected");
  const at::Tensor u =
      context.streams.uniform(Purpose::kSubset, key, batch.first / 2, batch.n / 2, {}, at::kDouble);
  const at::Tensor rows =
      (u * static_cast<double>(chosen.size(0))).to(at::kLong).clamp_max(chosen.size(0) - 1);
  if (pairs_.contains("labels")) {
    batch.labels = pairs_.at("labels").index_select(0, rows).repeat_interleave(2);
  }
  return at::stack({chosen.index_select(0, rows), rejected.index_select(0, rows)}, 1)
      .flatten(0, 1)
      .to(context.dtype);
}

EndpointRegression::EndPoints EndpointRegression::end_points(const FinetuneContext& context,
                                                             const VelocityField& sampler,
                                                             std::int64_t step, bool will_reuse,
                                                             Batch& batch) {
  const auto key = static_cast<std::uint32_t>(step);
  const std::int64_t first = batch.first;
  const std::int64_t n = batch.n;
  EndPoints out;
  if (!config_.pairs.empty()) {
    out.x_1 = stored_pairs(context, key, batch);  // brings labels of its own
  } else if (config_.weights == "path") {
    Batch walked = collect_paths(context, step, first, n, batch.labels, {}, will_reuse);
    out.log_ratio = measure_against_base(context, walked);
    out.x_1 = walked.states.back();
    batch.control_cost = walked.control_cost;
  } else if (compares() && config_.screening.candidates > 0) {
    out.x_1 = screened_end_points(context, sampler, key, first, n, config_.advantage.group,
                                  batch.labels, config_.screening, batch.metrics, &batch.rewards);
  } else {
    out.x_0 = prior_sample(context.streams, key, first, n, context.sample_shape, context.dtype);
    out.x_1 = rollout(sampler, context.table, out.x_0, Condition{batch.labels},
                      keyed_noise(context.streams, key, first, out.x_0))
                  .last;
  }
  return out;
}

// grad r + s_base + x_1 at the end point; undefined for methods without a linear base.
at::Tensor EndpointRegression::score(const FinetuneContext& context, const EndPoints& ends,
                                     Batch& batch) const {
  const at::Tensor& x_1 = ends.x_1;
  if (linear_base()) {
    ScoreAndGradient result = context.reward.score_and_gradient(x_1, batch.labels);
    constexpr double kScoreTime =
        1 - 1e-2;  // where the base's score is read: at 1 itself the noise is gone
    const at::Tensor v =
        context.policy.base->velocity(x_1, time_tensor(kScoreTime, x_1), Condition{batch.labels});
    batch.rewards = std::move(result.score);
    return result.gradient + score_from_velocity(context.path.at(kScoreTime), x_1, v) + x_1;
  }
  if (!batch.rewards.defined()) {
    batch.rewards = context.reward.score(x_1, batch.labels);
    if (context.extra_reward && ends.x_0.defined()) {
      batch.rewards += context.extra_reward(ends.x_0, x_1, batch.labels);
    }
  }
  return {};
}

Batch EndpointRegression::collect(const FinetuneContext& context, std::int64_t step,
                                  std::int64_t first, std::int64_t n, bool will_reuse) {
  const at::NoGradGuard no_grad;
  Batch batch;
  batch.first = first;
  batch.n = n;
  batch.labels = compares() ? grouped(context.labels, config_.advantage.group)(first, n)
                            : context.labels(first, n);
  const VelocityField& sampler =
      config_.rollouts == "base" ? *context.policy.base : context.policy.collector();
  const EndPoints ends = end_points(context, sampler, step, will_reuse, batch);
  const Condition condition{batch.labels};
  const at::Tensor end_adjoint = score(context, ends, batch);
  batch.log_weights = config_.tau * batch.rewards.to(at::kDouble);
  if (ends.log_ratio.defined()) batch.log_weights += ends.log_ratio;
  if (compares()) batch.advantages = advantages(batch.rewards, config_.advantage);
  const std::int64_t shared =
      method_ == "dpo" ? config_.advantage.group : 1;  // pairs share time and noise
  for (const Noised& noised : noise_anew(context, static_cast<std::uint32_t>(step), first, ends.x_1,
                                         config_.noisings, shared)) {
    batch.times.push_back(noised.t);
    batch.states.push_back(noised.state);
    batch.targets.push_back(linear_base() ? linear_base_target(noised, end_adjoint)
                                          : noised.flow_target());
    // Used once, the policy of the loss is the one that made the end points: no call of its own.
    if (needs_old() && (will_reuse || &sampler != context.policy.tuned.get())) {
      batch.tuned_velocities.push_back(sampler.velocity(noised.state, noised.t, condition));
    }
    if (needs_base()) {
      batch.base_velocities.push_back(
          context.policy.base->velocity(noised.state, noised.t, condition));
    }
  }
  return batch;
}

// Of each group the best against the worst; those that tie share the place, so that a group of
// equal rewards prefers nothing. [n], [n] -> [groups]
at::Tensor EndpointRegression::preference_loss(const at::Tensor& rewards,
                                               const at::Tensor& excess) const {
  const at::Tensor r = rewards.view({-1, config_.advantage.group});
  const at::Tensor e = excess.view({-1, config_.advantage.group});
  const bool stored =
      !config_.pairs.empty();  // the order of the file is the preference, whatever the reward says
  const at::Tensor in_order = -at::arange(config_.advantage.group, r.options()).expand_as(r);
  const at::Tensor scores = stored ? in_order : r;
  const at::Tensor weights = shares_of_best(scores) - shares_of_best(-scores);
  const at::Tensor margin = -0.5 * config_.beta * (weights.to(e.scalar_type()) * e).sum(1);
  const at::Tensor p = config_.soft_labels
                           ? at::sigmoid((weights * r).sum(1)).to(margin.scalar_type())
                           : at::ones_like(margin);
  return -(p * at::log_sigmoid(margin) + (1 - p) * at::log_sigmoid(-margin));
}

at::Tensor EndpointRegression::per_sample(const Batch& b, std::size_t j, const at::Tensor& v,
                                          const at::Tensor& weights) const {
  const at::Tensor& y = b.targets[j];
  const at::Tensor old = b.tuned_velocities.empty() ? v.detach() : b.tuned_velocities[j];
  at::Tensor out;
  if (method_ == "rwr") {
    out = weights.to(v.scalar_type()) * mean_square(v - y);
  } else if (method_ == "best-of-group") {
    const at::Tensor shares = shares_of_best(b.rewards.view({-1, config_.advantage.group}));
    out = shares.to(v.scalar_type()).view({-1}) * mean_square(v - y) *
          static_cast<double>(config_.advantage.group);
  } else if (method_ == "diffusion-nft") {
    const double top = config_.advantage.clip > 0 ? config_.advantage.clip : 1;
    const double s = config_.strength;
    const at::Tensor r = (b.advantages / (2 * top) + 0.5).clamp(0, 1);
    const at::Tensor plus = s * v + (1 - s) * old;
    const at::Tensor minus = (1 + s) * old - s * v;
    at::Tensor good = mean_square(plus - y);
    at::Tensor bad = mean_square(minus - y);
    if (config_.self_weight) {
      good = good / (plus - y).detach().flatten(1).abs().mean(1).clamp_min(1e-5);
      bad = bad / (minus - y).detach().flatten(1).abs().mean(1).clamp_min(1e-5);
    }
    out = top / s * (r * good + (1 - r) * bad);
  } else if (method_ == "advantage-flow") {
    out = b.advantages * mean_square(v - y) + config_.gamma * mean_square(v - old);
    if (config_.self_weight) out = out / (v - y).detach().flatten(1).abs().mean(1).clamp_min(1e-5);
  } else if (method_ == "advantage-weighted-matching") {
    const at::Tensor ratio = (mean_square(old - y) - mean_square(v - y))
                                 .exp();  // exp of minus the error stands in for the density
    out = -b.advantages * ratio;
    if (config_.clip > 0) {
      out = at::maximum(out, -b.advantages * ratio.clamp(1 - config_.clip, 1 + config_.clip));
    }
  } else if (linear_base()) {
    out = mean_square(v - y);
  } else if (method_ == "ram") {
    out = mean_square(
        v - (b.base_velocities[j] + wide(config_.strength * b.advantages, v) * (y - old)));
  } else {
    out = preference_loss(b.rewards, mean_square(v - y) - mean_square(b.base_velocities[j] - y));
  }
  if (config_.preserve > 0) {
    at::Tensor keep = config_.preserve * mean_square(v - b.base_velocities[j]);
    if (out.size(0) != keep.size(0)) keep = keep.view({out.size(0), -1}).mean(1);
    out = out + keep;
  }
  return out;
}

LossReport EndpointRegression::loss(const FinetuneContext& context, const Batch& batch,
                                    std::int64_t total) {
  const std::vector<at::Tensor> v = velocities_of_noised(context, batch);
  LossReport report;
  at::Tensor weights;  // of rwr
  if (method_ == "rwr") {
    const PathWeights normalised = path_weights(batch.log_weights, config_.trust_region);
    add_weight_metrics(report, normalised);
    report.metrics.add("ess", 1 / normalised.weights.square().sum().item<double>(),
                       static_cast<double>(batch.n));
    // Weights that have the base's log Z are divided by it: dividing by the mean of a few samples
    // shrinks the tilt, the more the fewer. Others: within the piece of work.
    const bool known = (config_.rollouts == "base" || config_.weights == "path") &&
                       config_.tau == 1 && config_.trust_region == 0;
    weights = known ? (batch.log_weights - context.log_z).clamp_max(kMaxEndpointLogWeight).exp()
                    : normalised.weights * static_cast<double>(batch.n);
  }
  for (std::size_t j = 0; j < v.size(); ++j) {
    const at::Tensor each = per_sample(batch, j, v[j], weights);
    const at::Tensor term = each.mean() * (static_cast<double>(batch.n) /
                                           static_cast<double>(total * config_.noisings));
    report.loss = report.loss.defined() ? report.loss + term : term;
  }
  add_batch_metrics(report, batch);
  return report;
}

}  // namespace tiltflow
