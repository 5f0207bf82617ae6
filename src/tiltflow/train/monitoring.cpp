#include "tiltflow/train/monitoring.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "tiltflow/base/error.h"
#include "tiltflow/base/progress.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/image.h"
#include "tiltflow/io/json_lines.h"
#include "tiltflow/reward/importance.h"
#include "tiltflow/sampler/lean_adjoint.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

// Keys of random streams that no training step uses.
constexpr std::uint32_t kEvaluationKey = 0xfffff000u, kBaseKey = 0xfffff001u;

constexpr std::int64_t kCompared = 16, kMapped = 6;  // pictures

double standard_error(const at::Tensor& x) { return x.size(0) > 1 ? x.std().item<double>() / std::sqrt(static_cast<double>(x.size(0))) : 0; }

std::string show(const at::Tensor& values, std::int64_t i) { return fixed(values[i].item<double>(), 2); }

// On some samples of the base: every term has a gradient, and it is right.
void check_gradient(const FinetuneSetup& setup, const Draws& draws) {
  const std::int64_t n = std::min<std::int64_t>(16, draws.x.size(0));
  const at::Tensor x = draws.x.narrow(0, 0, n);
  const at::Tensor labels = draws.labels.defined() ? draws.labels.narrow(0, 0, n) : draws.labels;
  for (const ObservedTerm& term : observe_terms(*setup.reward, x, labels)) {
    const bool lost = term.varies && term.gradient != TermGradient::kPresent;
    if (lost) refuse_missing_gradient(setup.config.method.name, term.name, cat("scores differ between samples, and the gradient is exactly zero at all ", n, " of them"));
  }
  check_reward(*setup.reward, x, labels, setup.streams);
}

}  // namespace

BaseStatistics base_statistics(const FinetuneSetup& setup, const VelocityField& base) {
  Progress progress("base samples", setup.config.evaluation.base_samples);
  DrawOptions options;
  options.n = setup.config.evaluation.base_samples, options.step = kBaseKey, options.shared = true;
  options.progress = [&](std::int64_t done) { progress.update(done); };
  const Draws draws = draw(base, setup.config.sampler, *setup.flow.path, setup.flow.model->sample_shape(), setup.streams, setup.labels_at(kBaseKey), options);
  if (needs_reward_gradient(setup.config)) check_gradient(setup, draws);
  const at::Tensor r = setup.reward->score(draws.x, draws.labels, /*shared=*/true).to(at::kDouble);
  require_varied(r, setup.reward->reward().info().name);
  const ImportanceWeights weights = importance_weights(r, draws.labels);
  return {r.mean().item<double>(), standard_error(r), weights.log_z, weights.log_z_se, weights.ess};
}

// What base_statistics found when the run began.
BaseStatistics stored_base_statistics(const Run& run) {
  for (const auto& line : read_json_lines(run.directory() / "metrics.jsonl")) {
    if (!line.contains("log_z")) continue;
    const auto number = [&](const char* key) { return number_from_json(line.at(key)); };
    return {number("base_reward"), number("base_reward_se"), number("log_z"), number("log_z_se"), number("base_ess")};
  }
  fail(ErrorKind::kBadFile, cat((run.directory() / "metrics.jsonl").string(), " lacks the line with the base statistics"), "start afresh in another folder with --out");
}

void Monitor::evaluate(const ParameterSet& average, std::int64_t step) {
  const FinetuneConfig& config = setup_.config;
  const SwappedWeights swapped(policy_.trainable, average);
  const auto tuned = setup_.for_evaluation(policy_.tuned), base = setup_.for_evaluation(policy_.base);
  const std::vector<std::int64_t> shape = setup_.flow.model->sample_shape();
  const LabelSource labels = setup_.labels_at(kEvaluationKey);
  DrawOptions options;
  options.n = config.evaluation.samples, options.step = kEvaluationKey, options.reference = base.get(), options.shared = true;
  const Draws draws = draw(*tuned, config.sampler, *setup_.flow.path, shape, setup_.streams, labels, options);
  at::Tensor ode_samples;  // from the same noise
  if (!config.evaluation.ode.empty()) {
    SamplerConfig ode = config.sampler;
    ode.name = config.evaluation.ode, ode.steps = config.evaluation.ode_steps;
    DrawOptions same = options;
    same.reference = nullptr;
    const Guidance own{config.evaluation.ode_guidance};
    const auto field = own.active() ? guided(policy_.tuned, own, setup_.flow.model->classes()) : tuned;
    ode_samples = draw(*field, ode, *setup_.flow.path, shape, setup_.streams, labels, same).x;
  }
  const at::Tensor r = setup_.reward->score(draws.x, draws.labels, /*shared=*/true).to(at::kDouble);
  const at::Tensor ode_rewards = ode_samples.defined() ? setup_.reward->score(ode_samples, draws.labels, /*shared=*/true).to(at::kDouble) : at::Tensor();
  if (!run_.writes()) return;  // the rest is for one process
  std::map<std::string, double> metrics{{"eval_reward", r.mean().item<double>()}, {"eval_reward_se", standard_error(r)}, {"eval_sample_min", draws.x.min().item<double>()}, {"eval_sample_max", draws.x.max().item<double>()},
                                        {"eval_sample_mean", draws.x.mean().item<double>()}, {"eval_sample_deviation", draws.x.std().item<double>()}};
  if (draws.cost.defined()) {  // a stochastic sampler
    const at::Tensor net = r - draws.cost.to(at::kDouble);
    const double cost = draws.cost.mean().item<double>();
    const PathGap sharp = path_gap(r, draws.log_ratio, draws.labels);
    metrics.insert({{"eval_control_cost", cost}, {"eval_gap", base_.log_z - net.mean().item<double>()}, {"eval_gap_se", std::hypot(standard_error(net), base_.log_z_se)},
                    {"eval_path_gap", sharp.gap}, {"eval_path_gap_se", sharp.gap_se}, {"eval_path_ess", sharp.ess}, {"eval_gain_per_cost", cost > 0 ? (r.mean().item<double>() - base_.reward) / cost : 0}});
  }
  if (ode_rewards.defined()) metrics["eval_ode_reward"] = ode_rewards.mean().item<double>(), metrics["eval_ode_reward_se"] = standard_error(ode_rewards);
  run_.log(step, metrics);
  run_.histogram("eval_rewards", step, r);
  if (draws.x.dim() != 4) return;
  const std::int64_t shown = std::min<std::int64_t>(32, draws.x.size(0));
  run_.picture("samples", step, enlarge(image_grid(setup_.reward->decode(draws.x.narrow(0, 0, shown)).clamp(0, 1), 8), 2));
  compare_pictures(draws, r, *base, step);
  heat_maps(*tuned, *base, step);
}

// Columns: one noise and label each; first row base, second row tuned, with the rewards.
void Monitor::compare_pictures(const Draws& tuned, const at::Tensor& rewards, const VelocityField& base, std::int64_t step) {
  const at::NoGradGuard no_grad;
  DrawOptions options;
  options.n = std::min<std::int64_t>(kCompared, tuned.x.size(0)), options.step = kEvaluationKey;
  if (!base_images_.defined()) {
    const Draws before = draw(base, setup_.config.sampler, *setup_.flow.path, setup_.flow.model->sample_shape(), setup_.streams, setup_.labels_at(kEvaluationKey), options);
    base_images_ = setup_.reward->decode(before.x).clamp(0, 1), base_rewards_ = setup_.reward->score(before.x, before.labels);
  }
  const at::Tensor images = setup_.reward->decode(tuned.x.narrow(0, 0, options.n)).clamp(0, 1);
  std::vector<std::string> captions;
  for (const at::Tensor& row : {base_rewards_, rewards}) {
    for (std::int64_t i = 0; i < options.n; ++i) captions.push_back(tuned.labels.defined() ? cat(tuned.labels[i].item<std::int64_t>(), ": ", show(row, i)) : show(row, i));
  }
  const int factor = images.size(3) < 64 ? 2 : 1;  // room for the text
  const auto large = [&](const at::Tensor& x) { return x.repeat_interleave(factor, 2).repeat_interleave(factor, 3); };
  run_.picture("base-above-tuned", step, image_grid(at::cat({large(base_images_), large(images)}), static_cast<int>(options.n), captions));
}

// |a_t| over the image at t = 0, 1/4, 1/2, 3/4, 1, each scaled to its own maximum.
void Monitor::heat_maps(const VelocityField& tuned, const VelocityField& base, std::int64_t step) {
  if (!setup_.reward_gradient) return;
  const at::NoGradGuard no_grad;
  const std::int64_t n = std::min<std::int64_t>(kMapped, setup_.config.evaluation.samples);
  const Condition condition{setup_.labels_at(kEvaluationKey)(0, n)};
  const at::Tensor x_0 = prior_sample(setup_.streams, kEvaluationKey, 0, n, setup_.flow.model->sample_shape());
  const NoiseSource noise = setup_.config.method.noise() ? keyed_noise(setup_.streams, kEvaluationKey, 0, x_0) : [x_0](int) { return at::zeros_like(x_0); };
  RolloutOptions keep;
  keep.keep_states = true;
  const Trajectory path = rollout(tuned, setup_.table, x_0, condition, noise, keep);
  const AdjointPass pass = lean_adjoint(base, setup_.table, path.states, condition, -setup_.reward->score_and_gradient(path.last, condition.labels).gradient, {.to_start = true});
  std::vector<at::Tensor> maps;
  std::vector<std::string> captions;
  for (std::int64_t i = 0; i < n; ++i) {
    for (const double wanted : {0.0, 0.25, 0.5, 0.75, 1.0}) {
      std::size_t k = 0;
      while (k < setup_.table.steps.size() && setup_.table.steps[k].t < wanted - 1e-9) ++k;
      const at::Tensor size = pass.adjoints[k][i].square().sum(0, true).sqrt();
      maps.push_back(size / (size.max() + 1e-30));
      captions.push_back(cat("t ", fixed(k < setup_.table.steps.size() ? setup_.table.steps[k].t : setup_.table.t_end, 2)));
    }
  }
  const int factor = maps[0].size(2) < 32 ? 2 : 1;
  run_.picture("adjoint", step, image_grid(at::stack(maps).repeat_interleave(factor, 2).repeat_interleave(factor, 3), 5, captions));
}

}  // namespace tiltflow
