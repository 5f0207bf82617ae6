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
#include "tiltflow/train/reward_terms.h"

namespace tiltflow {
namespace {

// Keys of random streams that no training step uses.

constexpr std::int64_t kCompared = 8;
constexpr std::int64_t kMapped = 6;  // pictures
constexpr std::int64_t kAcross = 4;
constexpr std::int64_t kCellWidth = 112;  // of them in a row of the comparison, and pixels of one
constexpr std::int64_t kGradients = 32;   // samples whose reward gradient is looked at

// Latents without a decoder are none, whatever their shape looks like.
bool shows_pictures(const StateReward& reward, const at::Tensor& x) {
  if (x.dim() != 4) return false;
  const at::NoGradGuard no_grad;
  return is_picture(reward.decode(x.narrow(0, 0, 1)).sizes().slice(1));
}

double standard_error(const at::Tensor& x) {
  return x.size(0) > 1 ? x.std().item<double>() / std::sqrt(static_cast<double>(x.size(0))) : 0;
}

// Means of the terms and their standard errors: PREFIXreward_unscaled*, ..._se.
std::map<std::string, double> unscaled_metrics(const std::string& prefix, const at::Tensor& terms,
                                               const std::vector<RewardTerm>& config) {
  std::map<std::string, double> out;
  const std::vector<std::string> suffixes = term_suffixes(config);
  for (std::size_t i = 0; i < suffixes.size(); ++i) {
    const at::Tensor one = terms.select(1, static_cast<std::int64_t>(i)).to(at::kDouble);
    const std::string name = cat(prefix, "reward_unscaled", suffixes[i]);
    out[name] = one.mean().item<double>();
    out[name + "_se"] = standard_error(one);
  }
  return out;
}

// Share of the first samples, kGradients at most, at which the reward's gradient vanishes
// altogether.
double share_of_zero_gradients(const StateReward& reward, const Draws& draws) {
  constexpr std::int64_t kPiece = 16;  // bounds the memory of decoders
  const std::int64_t n = std::min(kGradients, draws.x.size(0));
  std::int64_t zero = 0;
  for (std::int64_t begin = 0; begin < n; begin += kPiece) {
    const std::int64_t count = std::min(kPiece, n - begin);
    const at::Tensor labels =
        draws.labels.defined() ? draws.labels.narrow(0, begin, count) : draws.labels;
    const at::Tensor gradient =
        reward.score_and_gradient(draws.x.narrow(0, begin, count), labels).gradient;
    zero += gradient.flatten(1).eq(0).all(1).sum().item<std::int64_t>();
  }
  return static_cast<double>(zero) / static_cast<double>(n);
}

std::string show(const at::Tensor& values, std::int64_t i) {
  return fixed(values[i].item<double>(), 2);
}

// On some samples of the base: every term has a gradient, and it is right.
void check_gradient(const FinetuneSetup& setup, const Draws& draws) {
  const std::int64_t n = std::min<std::int64_t>(16, draws.x.size(0));
  const at::Tensor x = draws.x.narrow(0, 0, n);
  const at::Tensor labels = draws.labels.defined() ? draws.labels.narrow(0, 0, n) : draws.labels;
  for (const ObservedTerm& term : observe_terms(*setup.reward, x, labels)) {
    const bool lost = term.varies && term.gradient != TermGradient::kPresent;
    if (lost) {
      refuse_missing_gradient(
          setup.config.method.name, term.name,
          cat("scores differ between samples, and the gradient is exactly zero at all ", n,
              " of them"));
    }
  }
  check_reward(*setup.reward, x, labels, setup.streams);
}

}  // namespace

ConditionGroups evaluation_groups(const FinetuneSetup& setup) {
  const FinetuneConfig& c = setup.config;
  const std::int64_t n = std::min(c.evaluation.samples, c.evaluation.base_samples);
  GroupingOptions options;
  // Few samples, as of a first look, are still shared by several labels.
  options.least = std::min(c.check.per_condition, std::max<std::int64_t>(2, n / 4));
  options.most = c.check.conditions;
  const LabelSource labels = setup.labels_at(RunKey::kBase);
  return in_groups(labels, labels, n, options, "evaluation.samples");
}

namespace {

// Of a mean over all conditions. Those of chosen conditions differ among each other as well.
double reward_error(const at::Tensor& rewards, const at::Tensor& labels,
                    const ConditionGroups& groups) {
  if (!groups.chosen || groups.conditions < 2) return standard_error(rewards);
  std::vector<double> means;
  const at::Tensor distinct = std::get<0>(at::_unique(labels));
  for (std::int64_t i = 0; i < distinct.size(0); ++i) {
    means.push_back(rewards.masked_select(labels.eq(distinct[i])).mean().item<double>());
  }
  return standard_error(at::tensor(means, at::kDouble));
}

}  // namespace

BaseStatistics base_statistics(const FinetuneSetup& setup, const VelocityField& base) {
  const ConditionGroups groups = evaluation_groups(setup);
  DrawOptions options;
  options.n = groups.whole(setup.config.evaluation.base_samples);
  Progress progress("base samples", options.n);
  options.step = RunKey::kBase;
  options.shared = true;
  options.progress = [&](std::int64_t done) { progress.update(done); };
  const Draws draws = draw(base, setup.config.sampler, *setup.flow.path,
                           setup.flow.model->sample_shape(), setup.streams, groups.labels, options);
  if (needs_reward_gradient(setup.config)) check_gradient(setup, draws);
  const TermScores scores = setup.reward->score_terms(draws.x, draws.labels, /*shared=*/true);
  const at::Tensor r = scores.score.to(at::kDouble);
  if (needs_reward_gradient(setup.config)) require_varied(r, setup.reward->reward().info().name);
  const ImportanceWeights weights = importance_weights(r, draws.labels);
  BaseStatistics out{r.mean().item<double>(),
                     reward_error(r, draws.labels, groups),
                     weights.log_z,
                     weights.log_z_se,
                     weights.ess,
                     r.size(0),
                     groups.conditions};
  out.unscaled = unscaled_metrics("base_", scores.terms, setup.config.reward);
  out.warnings = diagnose_base_rewards(r, draws.labels, setup.reward->reward().scales());
  if (!needs_reward_gradient(setup.config)) return out;
  if (const auto found = diagnose_zero_gradients(share_of_zero_gradients(*setup.reward, draws))) {
    out.warnings.push_back(*found);
  }
  return out;
}

std::map<std::string, double> metrics_of(const BaseStatistics& b) {
  std::map<std::string, double> out = b.unscaled;
  out.insert({{"base_reward", b.reward},
              {"base_reward_se", b.reward_se},
              {"log_z", b.log_z},
              {"log_z_se", b.log_z_se},
              {"base_ess", b.ess},
              {"base_samples", static_cast<double>(b.samples)},
              {"base_conditions", static_cast<double>(b.conditions)}});
  return out;
}

RunFacts facts_of(const FinetuneSetup& setup, const BaseStatistics& base) {
  const FinetuneConfig& c = setup.config;
  RunFacts out;
  out.batch = c.batch;
  out.micro_batch = c.micro_batch;
  out.buffer_passes = c.buffer_passes;
  const bool same_law = c.guidance.mode == "none" ||
                        c.guidance.mode == "full";  // rollouts sample what base samples are of
  const bool same_reward = c.surrogate.every == 0 && c.modes.codes == 0;
  const std::unique_ptr<FinetuneMethod> method = make_method(c.method);
  out.loss_falls = method->loss_falls();
  if (same_law && same_reward && method->rewards_are_the_policys()) {
    out.base = RunFacts::Base{base.reward, base.reward_se};
  }
  return out;
}

// What base_statistics found when the run began.
BaseStatistics stored_base_statistics(const Run& run) {
  for (const auto& line : read_json_lines(run.directory() / "metrics.jsonl")) {
    if (!line.contains("log_z")) continue;
    const auto number = [&](const char* key) { return number_from_json(line.at(key)); };
    BaseStatistics out{number("base_reward"), number("base_reward_se"), number("log_z"),
                       number("log_z_se"), number("base_ess")};
    if (line.contains("base_samples")) {
      out.samples = static_cast<std::int64_t>(number("base_samples"));
      out.conditions = static_cast<std::int64_t>(number("base_conditions"));
    }
    for (const auto& [key, value] : line.items()) {
      if (starts_with(key, "base_reward_unscaled")) out.unscaled[key] = number_from_json(value);
    }
    return out;
  }
  fail(
      ErrorKind::kBadFile,
      cat((run.directory() / "metrics.jsonl").string(), " lacks the line with the base statistics"),
      "start afresh in another folder with --out");
}

LabelSource Monitor::labels() const {
  return groups_.chosen ? groups_.labels : setup_.labels_at(RunKey::kEvaluation);
}

std::int64_t Monitor::samples() const { return groups_.whole(setup_.config.evaluation.samples); }

namespace {

// Of a stochastic sampler's paths: rewards against the cost of control.
std::map<std::string, double> gap_metrics(const Draws& draws, const at::Tensor& rewards,
                                          const BaseStatistics& base) {
  const at::Tensor net = rewards - draws.cost.to(at::kDouble);
  const double cost = draws.cost.mean().item<double>();
  const double gain = rewards.mean().item<double>() - base.reward;
  const PathGap sharp = path_gap(rewards, draws.log_ratio, draws.labels);
  return {{"eval_control_cost", cost},
          {"eval_gap", base.log_z - net.mean().item<double>()},
          {"eval_gap_se", std::hypot(standard_error(net), base.log_z_se)},
          {"eval_path_gap", sharp.gap},
          {"eval_path_gap_se", sharp.gap_se},
          {"eval_path_ess", sharp.ess},
          {"eval_gain_per_cost", cost > 0 ? gain / cost : 0}};
}

}  // namespace

// Under evaluation.ode, from the same noise as the stochastic sampler's; undefined without one.
at::Tensor Monitor::rewards_of_ode(const std::shared_ptr<const VelocityField>& tuned,
                                   DrawOptions options) const {
  const EvaluationConfig& config = setup_.config.evaluation;
  if (config.ode.empty()) return {};
  SamplerConfig ode = setup_.config.sampler;
  ode.name = config.ode;
  ode.steps = config.ode_steps;
  options.reference = nullptr;
  const Guidance own{config.ode_guidance};
  const auto field =
      own.active() ? guided(policy_.tuned, own, setup_.flow.model->classes()) : tuned;
  const Draws draws = draw(*field, ode, *setup_.flow.path, setup_.flow.model->sample_shape(),
                           setup_.streams, labels(), options);
  return setup_.reward->score(draws.x, draws.labels, /*shared=*/true).to(at::kDouble);
}

std::map<std::string, double> Monitor::evaluate(const ParameterSet& average, std::int64_t step) {
  const FinetuneConfig& config = setup_.config;
  const SwappedWeights swapped(policy_.trainable, average);
  const auto tuned = setup_.for_evaluation(policy_.tuned);
  const auto base = setup_.for_evaluation(policy_.base);
  const std::vector<std::int64_t> shape = setup_.flow.model->sample_shape();
  DrawOptions options;
  options.n = samples();
  options.step = RunKey::kEvaluation;
  options.reference = base.get();
  options.shared = true;
  options.keep_prediction = shape.size() == 3;  // pictures
  const Draws draws =
      draw(*tuned, config.sampler, *setup_.flow.path, shape, setup_.streams, labels(), options);
  const TermScores scores = setup_.reward->score_terms(draws.x, draws.labels, /*shared=*/true);
  const at::Tensor r = scores.score.to(at::kDouble);
  const at::Tensor ode_rewards = rewards_of_ode(tuned, options);
  if (!run_.writes()) return {};  // the rest is for one process
  std::map<std::string, double> metrics{{"eval_reward", r.mean().item<double>()},
                                        {"eval_reward_se", standard_error(r)},
                                        {"eval_sample_min", draws.x.min().item<double>()},
                                        {"eval_sample_max", draws.x.max().item<double>()},
                                        {"eval_sample_mean", draws.x.mean().item<double>()},
                                        {"eval_sample_deviation", draws.x.std().item<double>()}};
  if (draws.cost.defined()) metrics.merge(gap_metrics(draws, r, base_));
  if (ode_rewards.defined()) {
    metrics["eval_ode_reward"] = ode_rewards.mean().item<double>();
    metrics["eval_ode_reward_se"] = standard_error(ode_rewards);
  }
  metrics.merge(unscaled_metrics("eval_", scores.terms, config.reward));
  if (needs_reward_gradient(config)) {
    metrics["eval_reward_gradient_zero"] = share_of_zero_gradients(*setup_.reward, draws);
  }
  run_.histogram("eval_rewards", step, r);
  if (shows_pictures(*setup_.reward, draws.x)) pictures(draws, r, *tuned, *base, step);
  return metrics;
}

void Monitor::pictures(const Draws& draws, const at::Tensor& r, const VelocityField& tuned,
                       const VelocityField& base, std::int64_t step) {
  const std::int64_t shown = std::min<std::int64_t>(32, draws.x.size(0));
  run_.picture(
      "samples", step,
      enlarge(
          image_grid(setup_.reward->decode(draws.prediction.narrow(0, 0, shown)).clamp(0, 1), 8),
          2));
  compare_pictures(draws, r, base, step);
  heat_maps(tuned, base, step);
}

// Blocks of two rows: above the base, below the tuned model from the same noise and label, with the
// rewards.
void Monitor::compare_pictures(const Draws& tuned, const at::Tensor& rewards,
                               const VelocityField& base, std::int64_t step) {
  const at::NoGradGuard no_grad;
  DrawOptions options;
  options.n = std::min<std::int64_t>(kCompared, tuned.x.size(0));
  options.step = RunKey::kEvaluation;
  options.keep_prediction = true;
  if (!base_images_.defined()) {
    const Draws before = draw(base, setup_.config.sampler, *setup_.flow.path,
                              setup_.flow.model->sample_shape(), setup_.streams, labels(), options);
    base_images_ = setup_.reward->decode(before.prediction).clamp(0, 1);
    base_rewards_ = setup_.reward->score(before.x, before.labels);
  }
  const at::Tensor images =
      setup_.reward->decode(tuned.prediction.narrow(0, 0, options.n)).clamp(0, 1);
  std::vector<at::Tensor> rows;
  std::vector<std::string> captions;
  const std::int64_t across = std::min(kAcross, options.n);
  for (std::int64_t first = 0; first + across <= options.n; first += across) {
    for (const auto& [pictures, scores] :
         {std::pair{base_images_, base_rewards_}, {images, rewards}}) {
      rows.push_back(pictures.narrow(0, first, across));
      for (std::int64_t i = first; i < first + across; ++i) {
        const std::string label =
            tuned.labels.defined() ? cat(tuned.labels[i].item<std::int64_t>(), ": ") : "";
        captions.push_back(label + show(scores, i));
      }
    }
  }
  const int factor = static_cast<int>(
      std::max<std::int64_t>(1, kCellWidth / images.size(3)));  // room for the text
  const at::Tensor large = at::cat(rows).repeat_interleave(factor, 2).repeat_interleave(factor, 3);
  run_.picture("base-above-tuned", step, image_grid(large, static_cast<int>(across), captions));
}

// |a_t| over the image at t = 0, 1/4, 1/2, 3/4, 1, each scaled to its own maximum.
void Monitor::heat_maps(const VelocityField& tuned, const VelocityField& base, std::int64_t step) {
  if (!setup_.reward_gradient) return;
  const at::NoGradGuard no_grad;
  const std::int64_t n = std::min<std::int64_t>(kMapped, samples());
  const Condition condition{labels()(0, n)};
  const at::Tensor x_0 =
      prior_sample(setup_.streams, RunKey::kEvaluation, 0, n, setup_.flow.model->sample_shape());
  const NoiseSource noise = setup_.config.method.noise()
                                ? keyed_noise(setup_.streams, RunKey::kEvaluation, 0, x_0)
                                : [x_0](int) { return at::zeros_like(x_0); };
  RolloutOptions keep;
  keep.keep_states = true;
  const Trajectory path = rollout(tuned, setup_.table, x_0, condition, noise, keep);
  const AdjointPass pass = lean_adjoint(
      base, setup_.table, path.states, condition,
      -setup_.reward->score_and_gradient(path.last, condition.labels).gradient, {.to_start = true});
  std::vector<at::Tensor> maps;
  std::vector<std::string> captions;
  for (std::int64_t i = 0; i < n; ++i) {
    for (const double wanted : {0.0, 0.25, 0.5, 0.75, 1.0}) {
      std::size_t k = 0;
      while (k < setup_.table.steps.size() && setup_.table.steps[k].t < wanted - 1e-9) ++k;
      const at::Tensor size = pass.adjoints[k][i].square().sum(0, true).sqrt();
      maps.push_back(size / (size.max() + 1e-30));
      captions.push_back(cat(
          "t ",
          fixed(k < setup_.table.steps.size() ? setup_.table.steps[k].t : setup_.table.t_end, 2)));
    }
  }
  const int factor = maps[0].size(2) < 32 ? 2 : 1;
  run_.picture("adjoint", step,
               image_grid(at::stack(maps).repeat_interleave(factor, 2).repeat_interleave(factor, 3),
                          5, captions));
}

}  // namespace tiltflow
