#include "tiltflow/train/diagnosis.h"

#include <algorithm>
#include <cmath>

#include "tiltflow/base/strings.h"

namespace tiltflow {
namespace {

// Thresholds. docs/warnings.md gives the reasons.
constexpr std::size_t kBatches = 5;  // whose median reward and cost are compared
constexpr double kCostMargin = 1;    // nats
constexpr double kStandardErrors = 4;
constexpr std::size_t kLossWindow = 20;  // steps
constexpr std::size_t kLossBatches = 8;  // that a window holds at least
constexpr double kLossRatio = 1.5;
constexpr double kLossPairs = 0.95;
constexpr std::size_t kClippedSteps = 100;
constexpr double kClippedRatio = 10;
constexpr double kClippedSpread = 2;  // largest norm to smallest
constexpr std::size_t kZeroSteps = 10;
constexpr double kWeightedSamples = 1.5;  // effective samples of a piece of work
constexpr double kLagShare = 0.5;         // of the reward gained

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// The last `count` values of a metric that end `skip` values before its last one, oldest first;
// fewer when there are not as many.
std::vector<double> last_values(MetricHistory history, const std::string& name, std::size_t count,
                                std::size_t skip = 0) {
  std::vector<double> out;
  for (auto line = history.rbegin(); line != history.rend() && out.size() < count; ++line) {
    const auto found = line->values.find(name);
    if (found == line->values.end()) continue;
    if (skip > 0) {
      --skip;
      continue;
    }
    out.push_back(found->second);
  }
  std::reverse(out.begin(), out.end());
  return out;
}

std::size_t steps_of_batches(std::size_t batches, const RunFacts& facts) {
  return batches * static_cast<std::size_t>(facts.buffer_passes);
}

// Median reward of the last batches with its standard error, or nothing when there are too few.
struct RecentReward {
  double reward = 0;
  double standard_error = 0;
};
std::optional<RecentReward> recent_reward(MetricHistory history, const RunFacts& facts) {
  const std::size_t steps = steps_of_batches(kBatches, facts);
  const std::vector<double> rewards = last_values(history, "reward", steps);
  const std::vector<double> deviations = last_values(history, "reward_deviation", steps);
  if (rewards.size() < steps || deviations.empty()) return std::nullopt;
  const double samples = static_cast<double>(facts.batch) * static_cast<double>(kBatches);
  return RecentReward{median(rewards),
                      std::hypot(median(deviations) / std::sqrt(samples), facts.base->reward_se)};
}

// E r - cost is a lower bound of log Z that starts at E_base r: below its start, the tuned law is
// farther from p* than the base.
std::optional<RunWarning> control_cost_outgrows_reward(MetricHistory history,
                                                       const RunFacts& facts) {
  if (!facts.base) return std::nullopt;
  const std::size_t steps = steps_of_batches(kBatches, facts);
  const std::vector<double> costs = last_values(history, "control_cost", steps);
  const auto recent = recent_reward(history, facts);
  if (costs.size() < steps || !recent) return std::nullopt;
  const double cost = median(costs);
  const double gain = recent->reward - facts.base->reward;
  if (!(cost - gain > kCostMargin + kStandardErrors * recent->standard_error)) return std::nullopt;
  const std::vector<double> before = last_values(history, "control_cost", 4 * steps, steps);
  std::string seen =
      cat("the control costs ", compact(cost, 3), " nats (median of ", kBatches, " batches)");
  if (!before.empty()) seen += cat(", ", compact(median(before), 3), " before");
  return RunWarning{
      "control-cost", cat(seen, ", and the reward has gained ", compact(gain, 3)),
      "log Z is bounded by reward less cost, and this bound lies below its value at the base: the "
      "tuned law is farther from p* than the base is",
      "lower train.learning_rate, or reward[].scale; a larger batch makes the control less noisy"};
}

// Share of pairs (earlier, later) in which the later value is larger.
double share_of_rising_pairs(const std::vector<double>& earlier, const std::vector<double>& later) {
  double rising = 0;
  for (const double a : earlier) {
    for (const double b : later) rising += b > a ? 1 : 0;
  }
  return rising / static_cast<double>(earlier.size() * later.size());
}

// Compares the last window with the best of the windows before it, one window in between.
std::optional<RunWarning> loss_rises(MetricHistory history, const RunFacts& facts) {
  if (!facts.loss_falls) return std::nullopt;
  const std::size_t window = std::max(kLossWindow, steps_of_batches(kLossBatches, facts));
  const std::vector<double> losses = last_values(history, "loss", 12 * window);
  if (losses.size() < 3 * window) return std::nullopt;
  if (std::any_of(losses.begin(), losses.end(), [](double loss) { return !(loss > 0); })) {
    return std::nullopt;  // of a loss without a floor the ratio says nothing
  }
  const auto piece = [&](std::size_t begin) {
    return std::vector<double>(losses.begin() + static_cast<std::ptrdiff_t>(begin),
                               losses.begin() + static_cast<std::ptrdiff_t>(begin + window));
  };
  const std::vector<double> later = piece(losses.size() - window);
  std::vector<double> best;
  for (std::size_t begin = losses.size() % window; begin + 2 * window < losses.size();
       begin += window) {
    std::vector<double> one = piece(begin);
    if (best.empty() || median(one) < median(best)) best = std::move(one);
  }
  const double low = median(best);
  const double high = median(later);
  if (high < kLossRatio * low || share_of_rising_pairs(best, later) < kLossPairs) {
    return std::nullopt;
  }
  return RunWarning{"loss",
                    cat("the loss has risen from ", compact(low, 3), " to ", compact(high, 3),
                        " (medians of ", window, " steps)"),
                    "the weights move away from what was learned already",
                    "lower train.learning_rate, or lengthen train.warmup"};
}

std::optional<RunWarning> clipping_never_rests(MetricHistory history, const RunFacts& facts) {
  if (facts.gradient_clip <= 0) return std::nullopt;
  const std::vector<double> norms = last_values(history, "gradient_norm", kClippedSteps);
  if (norms.size() < kClippedSteps) return std::nullopt;
  const double least = *std::min_element(norms.begin(), norms.end());
  const double middle = median(norms);
  if (least <= facts.gradient_clip || middle <= kClippedRatio * facts.gradient_clip) {
    return std::nullopt;
  }
  if (*std::max_element(norms.begin(), norms.end()) <= kClippedSpread * least) {
    return std::nullopt;  // all batches are shortened alike
  }
  return RunWarning{
      "gradient-clip",
      cat("each of the last ", kClippedSteps, " gradients was clipped: their median norm is ",
          compact(middle, 3), ", the limit ", compact(facts.gradient_clip, 3)),
      "batches with large gradients count less than their share, so training ends where the mean "
      "of clipped gradients is zero, not that of the loss",
      cat("raise train.gradient_clip, e.g. to ", compact(middle, 1), ", or enlarge the batch")};
}

std::optional<RunWarning> gradient_is_zero(MetricHistory history, const RunFacts&) {
  const std::vector<double> norms = last_values(history, "gradient_norm", kZeroSteps);
  if (norms.size() < kZeroSteps ||
      std::any_of(norms.begin(), norms.end(), [](double norm) { return norm != 0; })) {
    return std::nullopt;
  }
  return RunWarning{"gradient-zero",
                    cat("the gradient was exactly zero in ", kZeroSteps, " steps in a row"),
                    "nothing is being learned",
                    "check reward[].scale and whether the reward tells samples apart; methods that "
                    "compare samples need groups with different rewards (method.group)"};
}

// Weights of reused or reweighted batches that rest on one sample of each piece of work.
std::optional<RunWarning> weights_degenerate(MetricHistory history, const RunFacts& facts) {
  const std::size_t steps = steps_of_batches(kBatches, facts);
  const std::vector<double> sizes = last_values(history, "ess", steps);
  if (facts.micro_batch < 4 || sizes.size() < steps) return std::nullopt;
  const double samples = median(sizes) * static_cast<double>(facts.micro_batch);
  if (samples >= kWeightedSamples) return std::nullopt;
  return RunWarning{"weights",
                    cat("the weights of a batch have an effective size of ",
                        compact(100 * median(sizes), 2), " % (metric ess)"),
                    "one sample in each piece of work decides the step",
                    facts.buffer_passes > 1
                        ? "lower buffer_passes or train.learning_rate"
                        : "lower reward[].scale or method.tau, or set method.trust_region"};
}

// At the averaged weights' samples; at the base's, diagnose_zero_gradients is asked before the run.
std::optional<RunWarning> reward_gradient_is_zero(MetricHistory history, const RunFacts&) {
  if (history.empty()) return std::nullopt;
  const auto found = history.back().values.find("eval_reward_gradient_zero");
  return found == history.back().values.end() ? std::nullopt
                                              : diagnose_zero_gradients(found->second);
}

// How far an evaluation of the averaged weights, the last line, is behind the batches before it.
struct Lag {
  double averaged = 0;
  double current = 0;
  bool large = false;
};
std::optional<Lag> lag_at_the_end(MetricHistory history, const RunFacts& facts) {
  const std::map<std::string, double>& values = history.back().values;
  const auto recent = recent_reward(history.first(history.size() - 1), facts);
  if (!recent) return std::nullopt;
  const double averaged = values.at("eval_reward");
  const double error = values.at("eval_reward_se");
  const double lag = recent->reward - averaged;
  const double gain = std::abs(recent->reward - facts.base->reward);
  const double noise = std::hypot(error, recent->standard_error);
  return Lag{averaged, recent->reward, lag > kLagShare * gain && lag > kStandardErrors * noise};
}

bool is_evaluation(const LoggedMetrics& line) {
  return line.values.count("eval_reward") > 0 && line.values.count("eval_reward_se") > 0;
}

// Twice in a row the averaged weights lag behind the current ones by more than half of what was
// gained.
std::optional<RunWarning> average_lags(MetricHistory history, const RunFacts& facts) {
  if (!facts.base || history.empty() || !is_evaluation(history.back())) return std::nullopt;
  const auto last = lag_at_the_end(history, facts);
  if (!last || !last->large) return std::nullopt;
  MetricHistory before = history.first(history.size() - 1);
  while (!before.empty() && !is_evaluation(before.back())) before = before.first(before.size() - 1);
  const auto first = before.empty() ? std::nullopt : lag_at_the_end(before, facts);
  if (!first || !first->large) return std::nullopt;
  return RunWarning{
      "average",
      cat("the averaged weights have reward ", compact(last->averaged, 4), ", the current ones ",
          compact(last->current, 4), ", and so it was at the evaluation before"),
      "what is evaluated, sampled and written is the average, which does not follow the training",
      "lower train.average_decay, or train.final_fraction, so that the current weights come to "
      "rest"};
}

}  // namespace

std::string text_of(const RunWarning& w) {
  return cat(w.seen, ": ", w.meaning, ". ",
             static_cast<char>(std::toupper(static_cast<unsigned char>(w.change[0]))),
             w.change.substr(1), ".");
}

const std::vector<std::string>& warning_kinds() {
  static const std::vector<std::string> kinds{
      "control-cost",   "loss",  "gradient-clip",   "gradient-zero",   "weights", "average",
      "effective-size", "scale", "reward-constant", "reward-gradient", "classes"};
  return kinds;
}

std::vector<RunWarning> diagnose(MetricHistory history, const RunFacts& facts) {
  std::vector<RunWarning> out;
  for (const auto& sign :
       {control_cost_outgrows_reward, loss_rises, clipping_never_rests, gradient_is_zero,
        weights_degenerate, reward_gradient_is_zero, average_lags}) {
    if (auto found = sign(history, facts)) out.push_back(std::move(*found));
  }
  return out;
}

}  // namespace tiltflow
