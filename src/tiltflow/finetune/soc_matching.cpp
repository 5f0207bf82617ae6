#include "tiltflow/finetune/soc_matching.h"

#include <cmath>
#include <cstring>

#include "tiltflow/finetune/path_weights.h"
#include "tiltflow/sampler/lean_adjoint.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/tensor/process_group.h"

namespace tiltflow {
namespace {

constexpr double kRidge = 1e-2;  // of the normal equations, relative to their diagonal

}  // namespace

const std::vector<std::string>& soc_matching_methods() {
  static const std::vector<std::string> names{"socm", "socm-adjoint"};
  return names;
}

void bind_for(Fields& f, SocMatchingConfig& c, const std::string& method) {
  if (method == "socm") {
    f.value("matrices", c.matrices,
            "reparameterisation: constant, exponential, or learned (least variance)",
            one_of({"constant", "exponential", "learned"}));
    f.value("gamma", c.gamma, "exponential: its rate in time; learned: where it starts",
            at_least(0));
    f.value("memory", c.memory, "learned: decay of the running sums", between(0, 0.999));
  }
  f.value("trust_region", c.trust_region,
          "path weights are tempered to stay this many nats from equal ones; 0 = off", at_least(0));
}

void SocMatching::begin_step(const FinetuneContext& context, std::int64_t, std::int64_t) {
  observed_.clear();
  if (adjoint() || matrices_.defined()) return;
  const std::vector<Transition>& steps = context.table.steps;
  const auto count = static_cast<std::int64_t>(steps.size());
  const auto time = [&](std::int64_t j) {
    return j == count ? context.table.t_end : steps[static_cast<std::size_t>(j)].t;
  };
  start_ = at::zeros({count, count + 1}, at::kDouble);
  for (std::int64_t k = 0; k < count; ++k) {
    for (std::int64_t j = k + 1; j <= count; ++j) {
      start_[k][j] =
          config_.matrices == "constant" ? 1.0 : std::exp(-config_.gamma * (time(j) - time(k + 1)));
    }
  }
  matrices_ = start_.clone();
  if (gram_.defined()) solve();  // resumed
}

// Along the path, for j = 1..K: q_j, and q_j - e_{j-1} (the gradient of r stands in for q_K).
struct SocMatching::Pulled {
  std::vector<at::Tensor> pulled, fresh;
};

// One product with the base's Jacobian a step; stores the base's velocities in the batch.
SocMatching::Pulled SocMatching::pull_back(const FinetuneContext& context, Batch& batch,
                                           const at::Tensor& gradient) const {
  const std::vector<Transition>& steps = context.table.steps;
  const std::size_t count = steps.size();
  const Condition condition{batch.labels};
  Pulled out;
  out.pulled.resize(count + 1);
  out.fresh.resize(count + 1);
  at::Tensor before;  // e_{j-1}
  for (std::size_t j = 0; j <= count; ++j) {
    at::Tensor e;
    if (j < count) {
      const Transition& s = steps[j];
      const at::Tensor& x = batch.states[j];
      const at::Tensor t = time_tensor(s.t, x);
      const auto noise_seen_by_base = [&](const at::Tensor& v) {
        return e = (batch.noises[j] + (batch.tuned_velocities[j] - v) * (s.c / s.s)) / s.s;
      };
      if (j == 0) {
        noise_seen_by_base(batch.base_velocities[0] =
                               context.policy.base->velocity(x, t, condition));
      } else {
        const Vjp pass = context.policy.base->vjp_of(
            x, t, condition, [&](const at::Tensor& v) { return noise_seen_by_base(v) * s.c; });
        out.pulled[j] = e * s.p + pass.input_gradient;
        batch.base_velocities[j] = pass.velocity;
      }
    } else {
      out.pulled[j] = gradient;
    }
    if (j > 0) out.fresh[j] = out.pulled[j] - before;
    before = e;
  }
  return out;
}

// Sums for the least-squares problem of the next step's matrices, weighted like the loss.
void SocMatching::observe(const FinetuneContext& context, const Batch& batch, const Pulled& along) {
  const std::vector<Transition>& steps = context.table.steps;
  const std::size_t count = steps.size();
  const at::Tensor root =
      path_weights(batch.log_weights, config_.trust_region).weights.sqrt().unsqueeze(1);
  const auto flat = [&](const at::Tensor& x) {
    return (x.flatten(1).to(at::kDouble) * root).flatten();
  };
  std::vector<at::Tensor> rows(count + 1, at::zeros({batch.states[0].numel()}, at::kDouble));
  std::vector<at::Tensor> wanted;
  for (std::size_t j = 2; j <= count; ++j) rows[j] = flat(along.fresh[j]);
  for (std::size_t k = 0; k < count; ++k) {
    wanted.push_back(
        flat(along.pulled[k + 1] - (batch.tuned_velocities[k] - batch.base_velocities[k]) *
                                       (steps[k].c / (steps[k].s * steps[k].s))));
  }
  const at::Tensor d = at::stack(rows);
  const at::Tensor sums = at::cat({at::matmul(d, d.t()), at::matmul(at::stack(wanted), d.t())}) *
                          static_cast<double>(batch.n);
  const std::lock_guard lock(mutex_);
  observed_[batch.first] = sums;
}

Batch SocMatching::collect(const FinetuneContext& context, std::int64_t step, std::int64_t first,
                           std::int64_t n, bool will_reuse) {
  const std::size_t count = context.table.steps.size();
  Batch batch = collect_paths(context, step, first, n, context.labels(first, n),
                              std::vector<bool>(count, true), will_reuse);
  const at::NoGradGuard no_grad;
  ScoreAndGradient end = context.reward.score_and_gradient(batch.states.back(), batch.labels);
  batch.rewards = end.score;
  const auto measure = [&] {
    batch.log_weights = measure_against_base(context, batch) + batch.rewards.to(at::kDouble);
  };
  batch.targets.resize(count);
  batch.base_velocities.resize(count);
  if (adjoint()) {
    AdjointPass pass = lean_adjoint(*context.policy.base, context.table, batch.states,
                                    Condition{batch.labels}, -end.gradient);
    batch.base_velocities = std::move(pass.base_velocities);
    measure();
    for (std::size_t k = 0; k < count; ++k) batch.targets[k] = -pass.adjoints[k + 1];
    return batch;
  }
  const Pulled along = pull_back(context, batch, end.gradient);
  measure();
  for (std::size_t k = 0; k < count; ++k) {
    batch.targets[k] = along.pulled[k + 1];
    for (std::size_t j = k + 2; j <= count; ++j) {
      batch.targets[k] =
          batch.targets[k] +
          along.fresh[j] *
              matrices_[static_cast<std::int64_t>(k)][static_cast<std::int64_t>(j)].item<double>();
    }
  }
  if (learns()) observe(context, batch, along);
  return batch;
}

LossReport SocMatching::loss(const FinetuneContext& context, const Batch& batch,
                             std::int64_t total) {
  const std::vector<at::Tensor> v = velocities_along(context, batch, all_steps(context.table));
  const PathWeights weights = path_weights(batch.log_weights, config_.trust_region);
  const at::Tensor w =
      (weights.weights * static_cast<double>(batch.n)).to(batch.states[0].scalar_type());
  LossReport report;
  for (std::size_t k = 0; k < v.size(); ++k) {
    const Transition& s = context.table.steps[k];
    const at::Tensor each =
        ((v[k] - batch.base_velocities[k]) * (s.c / s.s) - batch.targets[k] * s.s)
            .flatten(1)
            .square()
            .sum(1);
    const at::Tensor term =
        (each * w).sum() / static_cast<double>(total * static_cast<std::int64_t>(v.size()));
    report.loss = report.loss.defined() ? report.loss + term : term;
  }
  add_weight_metrics(report, weights);
  add_batch_metrics(report, batch);
  return report;
}

// M_k minimises the variance of g_k around what was wanted, close to where it started (ridge).
void SocMatching::solve() {
  const std::int64_t count = matrices_.size(0);
  for (std::int64_t k = 0; k + 2 <= count; ++k) {
    const at::Tensor a = gram_.slice(0, k + 2).slice(1, k + 2);
    const at::Tensor from = start_[k].slice(0, k + 2);
    const at::Tensor right = cross_[k].slice(0, k + 2) + at::matmul(a, from);
    const at::Tensor ridge = at::diag(a.diagonal() * kRidge + 1e-12);
    matrices_[k].slice(0, k + 2).copy_(from -
                                       at::linalg_solve(a + ridge, right.unsqueeze(1)).squeeze(1));
  }
}

void SocMatching::end_step(std::map<std::string, double>& metrics) {
  finish_batch_metrics(metrics);
  if (!learns()) return;
  const std::int64_t count = matrices_.size(0);
  const std::int64_t size = (2 * count + 1) * (count + 1);
  std::map<std::int64_t, at::Tensor> all;
  std::string mine;
  for (const auto& [first, sums] : observed_) {
    mine.append(reinterpret_cast<const char*>(&first), sizeof first);
    mine.append(reinterpret_cast<const char*>(sums.contiguous().data_ptr<double>()),
                static_cast<std::size_t>(size) * sizeof(double));
  }
  const std::size_t record = sizeof(std::int64_t) + static_cast<std::size_t>(size) * sizeof(double);
  for (const std::string& bytes :
       world_size() == 1 ? std::vector<std::string>{mine} : all_gather(mine)) {
    for (std::size_t place = 0; place + record <= bytes.size(); place += record) {
      std::int64_t first = 0;
      std::memcpy(&first, bytes.data() + place, sizeof first);
      all[first] = at::empty({2 * count + 1, count + 1}, at::kDouble);
      std::memcpy(all[first].data_ptr<double>(), bytes.data() + place + sizeof first,
                  record - sizeof first);
    }
  }
  if (all.empty()) return;  // a reused batch
  at::Tensor sums = at::zeros({2 * count + 1, count + 1}, at::kDouble);
  for (const auto& [first, each] : all) sums += each;  // in sample order
  const double keep = gram_.defined() ? config_.memory : 0;
  const at::Tensor gram = sums.slice(0, 0, count + 1);
  const at::Tensor cross = sums.slice(0, count + 1);
  gram_ = gram_.defined() ? gram_ * keep + gram * (1 - keep) : gram.clone();
  cross_ = cross_.defined() ? cross_ * keep + cross * (1 - keep) : cross.clone();
  solve();
}

ParameterSet SocMatching::state() const {
  ParameterSet out;
  if (learns() && gram_.defined()) {
    out.add("gram", gram_);
    out.add("cross", cross_);
  }
  return out;
}

void SocMatching::restore(const ParameterSet& state) {
  if (!learns() || !state.contains("gram")) return;
  gram_ = state.at("gram").clone();
  cross_ = state.at("cross").clone();
  matrices_ = at::Tensor();  // solved again at the next step
}

}  // namespace tiltflow
