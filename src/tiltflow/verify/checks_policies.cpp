// Policies, labels and guidance: trained on problems whose discrete optimum is known.
#include <cmath>

#include "tiltflow/base/strings.h"
#include "tiltflow/models/mlp/mlp.h"
#include "tiltflow/sampler/fields.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/verify/analytic_model.h"
#include "tiltflow/verify/checks.h"
#include "tiltflow/verify/laws.h"
#include "tiltflow/verify/trained.h"

namespace tiltflow {
namespace {

at::Tensor numbers(std::vector<double> values) { return at::tensor(values, at::kDouble); }

std::shared_ptr<const VelocityField> gaussian_field(std::vector<double> center, double deviation,
                                                    std::shared_ptr<const Path> path) {
  const auto d = static_cast<std::int64_t>(center.size());
  return std::make_shared<MixtureField>(
      isotropic_mixture(numbers({1}), numbers(std::move(center)).view({1, d}), deviation),
      std::move(path));
}

TransitionTable table_40(const Path& path) {
  SamplerConfig sampler;
  sampler.steps = 40;
  return table_of(sampler, path);
}

TrainedOptions options_of(std::uint64_t seed) {
  TrainedOptions options;
  options.steps = 40;
  options.iterations = 600;
  options.batch = 384;
  options.seed = 5 + seed;
  return options;
}

// Law of the tuned chain under one label against the optimum of the discrete problem.
std::vector<VerifyRow> chain_rows(const std::string& name, const VelocityField& tuned,
                                  const VelocityField& base, std::int64_t label,
                                  const QuadraticForm& form, const TransitionTable& table,
                                  std::uint64_t seed, bool control) {
  const at::NoGradGuard no_grad;
  const Condition one{at::full({1}, label, at::kLong)};
  const ChainOptimum best = affine_chain_optimum(base, one, form, table);
  const ChainOptimum plain = affine_chain_law(base, one, form, table);
  const std::int64_t d = form.linear.size(0);
  const RandomStreams streams(seed);
  const at::Tensor x_0 = prior_sample(streams, 0, 0, kLawSamples, {d}, at::kDouble);
  const Condition labels{at::full({kLawSamples}, label, at::kLong)};
  RolloutOptions keep;
  keep.keep_states = keep.keep_velocities = true;
  const Trajectory path = rollout(tuned, table, x_0, labels, keyed_noise(streams, 0, 0, x_0), keep);
  at::Tensor cost = at::zeros({kLawSamples}, at::kDouble);
  for (std::size_t k = 0; k < table.steps.size(); ++k) {
    cost += control_cost(table.steps[k], path.velocities[k],
                         base.velocity(path.states[k], time_tensor(table.steps[k].t, x_0), labels));
  }
  const at::Tensor shift = best.mean - plain.mean;
  const double size = shift.norm().item<double>();
  const Estimate along = mean_estimate(at::matmul(path.last - plain.mean, shift / size));
  const Estimate net = mean_estimate(evaluate(form, path.last) - cost);
  std::vector<VerifyRow> rows;
  rows.push_back({name, "mean along the shift, of the chain's optimum", size, along,
                  0.05 * size + 3 * along.se, control, ""});
  if (control) return rows;
  const at::Tensor found = at::cov(path.last.t());
  const double relative =
      ((found - best.covariance).norm() / best.covariance.norm()).item<double>();
  rows.push_back({name,
                  "|cov - cov*| / |cov*|",
                  0,
                  {relative, std::sqrt((static_cast<double>(d) + 1) / kLawSamples)},
                  0.05 + 3 * std::sqrt((static_cast<double>(d) + 1) / kLawSamples),
                  false,
                  ""});
  rows.push_back({name, "control cost", best.cost, mean_estimate(cost),
                  0.06 * best.cost + 3 * mean_estimate(cost).se, false, ""});
  rows.push_back({name, "E r - cost, of the chain's optimum", best.reward - best.cost, net,
                  0.03 + 3 * net.se, false, ""});
  return rows;
}

StateReward reward_of(const QuadraticForm& form, const Path& path) {
  // The problem's base is not used: only its reward.
  return *make_problem(
              "",
              isotropic_mixture(numbers({1}), at::zeros({1, form.linear.size(0)}, at::kDouble), 1),
              form, path.name())
              .reward;
}

// Guidance 2.5 between two Gaussians. What is tilted is the law of the guided chain; with guidance
// in the rollouts alone something else is learnt.
std::vector<VerifyRow> guidance_rows(std::uint64_t seed) {
  std::vector<VerifyRow> rows;
  const auto path = make_path("linear");
  const auto model = std::make_shared<AnalyticModel>(
      std::vector{gaussian_field({0.8, -0.2}, 0.6, path), gaussian_field({0.0, 0.0}, 0.9, path)},
      2);
  const QuadraticForm form = quadratic_form(at::eye(2, at::kDouble) * 0.8, numbers({0.4, 1.5}));
  const TransitionTable table = table_40(*path);
  const Guidance guidance{2.5};
  const LabelsOfStep labels = [](std::int64_t) { return fixed_label(0); };
  for (const bool full : {true, false}) {
    Policy policy = control_policy(model, path, {"mlp", 64, 2}, RandomStreams(7));
    if (full) {
      policy.base = guided(policy.base, guidance, 1);
      policy.tuned = guided(policy.tuned, guidance, 1);
    } else {
      policy.rollout = guided(policy.tuned, guidance, 1);
    }
    const auto base = full ? policy.base : guided(policy.base, guidance, 1);
    const auto tuned = full ? policy.tuned : guided(policy.tuned, guidance, 1);
    train_policy(policy, reward_of(form, *path), *path, table, labels, 2, 0, options_of(seed));
    const auto found =
        chain_rows(full ? "guidance 2.5 everywhere" : "guidance 2.5 in rollouts only", *tuned,
                   *base, 0, form, table, seed + 400, !full);
    rows.insert(rows.end(), found.begin(), found.end());
  }
  return rows;
}

// Three classes with laws of their own and one control network: each class is tilted by itself.
std::vector<VerifyRow> label_rows(std::uint64_t seed) {
  std::vector<VerifyRow> rows;
  const auto path = make_path("linear");
  const auto model = std::make_shared<AnalyticModel>(
      std::vector{gaussian_field({-1.0, 0.0}, 0.5, path), gaussian_field({1.0, 0.5}, 0.7, path),
                  gaussian_field({0.0, -1.0}, 0.4, path), gaussian_field({0.0, 0.0}, 1.0, path)},
      2);
  const QuadraticForm form = quadratic_form(at::eye(2, at::kDouble), numbers({0.5, 1.0}));
  const TransitionTable table = table_40(*path);
  const Policy policy = control_policy(model, path, {"mlp", 64, 2}, RandomStreams(8));
  TrainedOptions options = options_of(seed);
  options.iterations = 900;
  const RandomStreams streams(options.seed);
  train_policy(
      policy, reward_of(form, *path), *path, table,
      [&](std::int64_t step) {
        return uniform_labels(streams, static_cast<std::uint32_t>(step), 3);
      },
      2, 0, options);
  for (std::int64_t label = 0; label < 3; ++label) {
    const auto found = chain_rows(cat("three classes, class ", label), *policy.tuned, *policy.base,
                                  label, form, table, seed + 410, false);
    rows.insert(rows.end(), found.begin(), found.end());
  }
  return rows;
}

// Low-rank adapters on a random network beside the base, and the linear control where a linear
// control is optimal.
std::vector<VerifyRow> lora_rows(std::uint64_t seed) {
  const ExactProblem p = near_modes();
  const MlpConfig shape{1, 64, 2, 6};
  PolicyConfig config;
  config.kind = "lora";
  config.rank = 8;
  config.alpha = 8;
  config.targets = {"layers.*"};
  const auto side = make_mlp(shape, init_mlp(shape, RandomStreams(9)));
  Policy policy = lora_policy(*side, config, RandomStreams(9));
  policy.base = p.base;
  policy.tuned = std::make_shared<SumField>(p.base, policy.tuned, p.path);
  const TransitionTable table = table_40(*p.path);
  TrainedOptions options = options_of(seed);
  options.iterations = 900;
  options.batch = 512;
  train_policy(
      policy, *p.reward, *p.path, table, [](std::int64_t) { return no_labels(); }, 1,
      p.target.log_z, options);
  LawTolerances tolerances;
  tolerances.covariance_fraction = 0.12;
  return law_rows(p, cat(p.name, ", LoRA"),
                  sample_law(*policy.tuned, table, 1, kLawSamples, seed + 420, p.base.get()),
                  tolerances, false);
}

std::vector<VerifyRow> lowrank_rows(std::uint64_t seed) {
  const ExactProblem p = line_gaussian(true);
  const auto model =
      std::make_shared<AnalyticModel>(std::vector<std::shared_ptr<const VelocityField>>{p.base}, 1);
  const Policy policy = control_policy(model, p.path, {"lowrank", 32, 1}, RandomStreams(10));
  const TransitionTable table = table_40(*p.path);
  train_policy(
      policy, *p.reward, *p.path, table, [](std::int64_t) { return no_labels(); }, 1,
      p.target.log_z, options_of(seed));
  LawTolerances tolerances;
  tolerances.covariance_fraction = 0.08;
  const ChainOptimum chain = gaussian_chain_optimum(p, table);
  return law_rows(p, cat(p.name, ", low-rank control"),
                  sample_law(*policy.tuned, table, 1, kLawSamples, seed + 430, p.base.get()),
                  tolerances, false, &chain);
}

}  // namespace

std::vector<VerifyTask> policy_checks(bool full, std::uint64_t seed) {
  if (!full) return {};
  return {{"policies, guidance", [=] { return guidance_rows(seed); }},
          {"policies, labels", [=] { return label_rows(seed); }},
          {"policies, lora", [=] { return lora_rows(seed); }},
          {"policies, lowrank control", [=] { return lowrank_rows(seed); }}};
}

}  // namespace tiltflow
