// Identities of gradients: what a method's first step is, compared with another way to compute it,
// in double precision on three modes in the plane.
#include <cmath>

#include "tiltflow/base/strings.h"
#include "tiltflow/finetune/methods.h"
#include "tiltflow/models/mlp/mlp.h"
#include "tiltflow/policy/policy.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/verify/checks.h"
#include "tiltflow/verify/problems.h"

namespace tiltflow {
namespace {

// A network beside the exact base that already does something.
struct GradientBench {
  ExactProblem problem = plane_modes(false);
  RandomStreams streams;
  Policy policy;
  TransitionTable table;
  LabelSource labels = no_labels();

  explicit GradientBench(std::uint64_t seed, int steps = 6, double offset = 0.02) : streams(seed) {
    ParameterSet weights;
    for (const auto& [name, tensor] : init_mlp({2, 16, 2, 4}, streams)) {
      weights.add(name, (tensor + offset).to(at::kDouble));
    }
    policy = side_policy(problem.base, *make_mlp({2, 16, 2, 4}, weights), problem.path);
    SamplerConfig sampler;
    sampler.steps = steps;
    table = table_of(sampler, *problem.path);
  }
  FinetuneContext context() const {
    return {policy, *problem.reward, *problem.path, table, streams, labels, {2}, at::kDouble};
  }
  std::vector<at::Tensor> weights() const { return policy.trainable.tensors(); }
  at::Tensor loss(const MethodConfig& config, std::int64_t n, std::int64_t step = 0) const {
    const at::AutoGradMode grad(true);
    const auto method = make_method(config);
    method->begin_step(context(), step, 0);
    return method->loss(context(), method->collect(context(), step, 0, n, false), n).loss;
  }
  at::Tensor gradient(const at::Tensor& of) const {
    std::vector<at::Tensor> parts;
    for (const at::Tensor& g : torch::autograd::grad({of}, weights(), {}, /*retain_graph=*/true)) {
      parts.push_back(g.flatten());
    }
    return at::cat(parts);
  }
  at::Tensor gradient(const MethodConfig& config, std::int64_t n, std::int64_t step = 0) const {
    return gradient(loss(config, n, step));
  }
  // d loss / d(length along `direction`), by central differences with the same noise.
  double slope(const MethodConfig& config, std::int64_t n, const at::Tensor& direction) const {
    constexpr double kLength = 1e-5;
    const auto moved = [&](double by) {
      const at::NoGradGuard no_grad;
      std::int64_t place = 0;
      for (at::Tensor w : weights()) {
        w.add_(direction.narrow(0, place, w.numel()).view_as(w), by);
        place += w.numel();
      }
    };
    const auto at_distance = [&](double by) {
      moved(by);
      const double value = loss(config, n).item<double>();
      moved(-by);
      return value;
    };
    return (at_distance(kLength) - at_distance(-kLength)) / (2 * kLength);
  }
};

MethodConfig method_of(const std::string& name) {
  MethodConfig c;
  c.name = name;
  return c;
}

// <found, reference> / <reference, reference>: 1 when they agree along the reference.
double share(const at::Tensor& found, const at::Tensor& reference) {
  return (at::dot(found, reference) / at::dot(reference, reference)).item<double>();
}

VerifyRow ratio_row(const std::string& what, double found, double tolerance, bool broken = false,
                    double se = 0) {
  return {what, "ratio of gradients", 1, {found, se}, tolerance, broken, ""};
}

std::vector<VerifyRow> direct_rows(std::uint64_t seed) {
  const GradientBench b(seed);
  constexpr std::int64_t kPaths = 64;
  MethodConfig all = method_of("draft");
  MethodConfig window = all;
  MethodConfig one = all;
  all.direct.last = 0;
  window.direct.last = b.table.size();
  one.direct.last = 1;
  const at::Tensor full = b.gradient(all, kPaths);
  const at::Tensor direction = full / full.norm();
  MethodConfig entropy = method_of("discrete-adjoint");
  const at::Tensor discrete = b.gradient(entropy, kPaths);
  const at::Tensor along = discrete / discrete.norm();
  return {
      ratio_row("draft, all steps, against central differences",
                b.slope(all, kPaths, direction) / at::dot(full, direction).item<double>(), 1e-5),
      ratio_row("draft, window of all steps = full backpropagation",
                share(b.gradient(window, kPaths), full), 1e-10),
      ratio_row("draft, window of one step, taken for all", share(b.gradient(one, kPaths), full),
                0.05, true),
      ratio_row("discrete-adjoint against central differences",
                b.slope(entropy, kPaths, along) / at::dot(discrete, along).item<double>(), 1e-5),
      ratio_row("basic-adjoint-matching = discrete-adjoint",
                share(b.gradient(method_of("basic-adjoint-matching"), kPaths), discrete), 1e-9)};
}

std::vector<VerifyRow> continuous_rows(std::uint64_t seed) {
  std::vector<VerifyRow> out;
  for (const int steps : {384, 6}) {  // their difference falls like 1 / steps
    const GradientBench b(seed, steps);
    const at::Tensor discrete = b.gradient(method_of("basic-adjoint-matching"), 500);
    const at::Tensor continuous = b.gradient(method_of("continuous-adjoint"), 500);
    const double difference = ((continuous - discrete).norm() / discrete.norm()).item<double>();
    out.push_back({cat("continuous-adjoint = discrete-adjoint, ", steps, " steps",
                       steps < 10 ? " (too few)" : ""),
                   "relative difference of gradients",
                   0,
                   {difference, 0},
                   0.03,
                   steps < 10,
                   ""});
  }
  return out;
}

// In expectation only: along the relative entropy's own gradient, over independent batches.
std::vector<VerifyRow> variance_rows(std::uint64_t seed) {
  const GradientBench b(seed);
  constexpr std::int64_t kPaths = 4000;
  constexpr std::int64_t kBatches = 24;
  const MethodConfig entropy = method_of("discrete-adjoint");
  const MethodConfig variance = method_of("log-variance");
  const at::Tensor direction = b.gradient(entropy, kPaths, 1000);
  std::vector<double> once, found;
  for (std::int64_t i = 0; i < kBatches; ++i) {
    once.push_back(at::dot(b.gradient(entropy, kPaths, i), direction).item<double>());
    found.push_back(at::dot(b.gradient(variance, kPaths, i), direction).item<double>());
  }
  const at::Tensor x = at::tensor(found, at::kDouble);
  const at::Tensor y = at::tensor(once, at::kDouble);
  const double ratio = x.mean().item<double>() / y.mean().item<double>();
  const double se = mean_estimate(x - ratio * y).se / y.mean().item<double>();
  return {ratio_row("log-variance, on-policy = twice the relative entropy", ratio / 2, 4 * se / 2,
                    false, se / 2),
          ratio_row("log-variance, on-policy, taken for once the relative entropy", ratio, 4 * se,
                    true, se)};
}

// On the first pass every ratio is 1: flow-grpo's gradient is -E[A grad log p], grpo-guard's pulls
// alike at every step, -E[A xi . grad v].
std::vector<VerifyRow> ratio_rows(std::uint64_t seed) {
  const GradientBench b(seed);
  constexpr std::int64_t kPaths = 64;
  MethodConfig grpo = method_of("flow-grpo");
  grpo.policy_gradient.advantage = {kPaths, "centred", 0};
  grpo.policy_gradient.kl = 0;
  grpo.policy_gradient.density = "sum";
  const at::AutoGradMode grad(true);
  const auto method = make_method(grpo);
  method->begin_step(b.context(), 0, 0);
  const Batch batch = method->collect(b.context(), 0, 0, kPaths, false);
  at::Tensor plain = at::zeros({}, at::kDouble);
  at::Tensor alike = plain;
  for (std::size_t k = 0; k < b.table.steps.size(); ++k) {
    const Transition& s = b.table.steps[k];
    const at::Tensor& x = batch.states[k];
    const at::Tensor v = b.policy.tuned->velocity(x, time_tensor(s.t, x), {});
    const at::Tensor xi = (batch.states[k + 1] - x * s.p - v.detach() * s.c) / s.s;
    plain =
        plain - (batch.advantages * transition_log_density(s, x, v, batch.states[k + 1])).mean() /
                    static_cast<double>(b.table.size());
    alike =
        alike - (batch.advantages * (v * xi).sum(1)).mean() / static_cast<double>(b.table.size());
  }
  const at::Tensor expected = b.gradient(plain);
  const at::Tensor even = b.gradient(alike);
  const at::Tensor found = b.gradient(method->loss(b.context(), batch, kPaths).loss);
  grpo.policy_gradient.density = "mean";  // as published: ratios of densities per dimension
  MethodConfig guard = grpo;
  guard.name = "grpo-guard";
  guard.policy_gradient.density = "sum";
  return {ratio_row("flow-grpo, first pass = -E[A grad log p]", share(found, expected), 1e-6),
          ratio_row("flow-grpo, mean densities, taken for -E[A grad log p]",
                    share(b.gradient(grpo, kPaths), expected), 0.05, true),
          ratio_row("grpo-guard, first pass = -E[A xi . grad v]",
                    share(b.gradient(guard, kPaths), even), 1e-6),
          ratio_row("flow-grpo, taken for grpo-guard", share(found, even), 0.05, true)};
}

// Where the policy is still its reference, no pair is preferred.
std::vector<VerifyRow> preference_rows(std::uint64_t seed) {
  std::vector<VerifyRow> out;
  for (const bool moved : {false, true}) {
    const GradientBench b(seed, 6, moved ? 0.02 : 0);
    MethodConfig dpo = method_of("dpo");
    dpo.endpoint.advantage.group = 4;
    out.push_back({moved ? "dpo, away from the base" : "dpo, at the base",
                   "loss",
                   std::log(2.0),
                   {b.loss(dpo, 64).item<double>(), 0},
                   1e-9,
                   moved,
                   ""});
  }
  return out;
}

}  // namespace

std::vector<VerifyTask> identity_checks(std::uint64_t seed) {
  return {{"identity: direct gradients", [=] { return direct_rows(seed); }},
          {"identity: continuous and discrete adjoint", [=] { return continuous_rows(seed); }},
          {"identity: log-variance and relative entropy", [=] { return variance_rows(seed); }},
          {"identity: flow-grpo's first pass", [=] { return ratio_rows(seed); }},
          {"identity: dpo's start", [=] { return preference_rows(seed); }}};
}

}  // namespace tiltflow
