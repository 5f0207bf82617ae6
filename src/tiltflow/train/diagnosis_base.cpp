// What can be said before a run: from its base samples, and from the classes of its data.
#include <algorithm>
#include <cmath>

#include "tiltflow/base/strings.h"
#include "tiltflow/reward/importance.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/train/diagnosis.h"

namespace tiltflow {
namespace {

// Thresholds. docs/warnings.md gives the reasons.
constexpr double kEffectiveSamples = 10;  // of one law
constexpr double kWantedShare = 0.1;      // effective size that a proposed scale leaves
constexpr double kFarSpread = 10;         // nats
constexpr double kNearSpread = 0.05;      // nats
constexpr double kZeroGradients = 0.5;    // share of the samples
constexpr double kUnbalanced = 10;        // largest class to smallest

std::int64_t laws_of(const at::Tensor& labels) {
  return labels.defined() ? std::get<0>(at::_unique(labels)).size(0) : 1;
}

// Standard deviation of the rewards within the labels, [N] double; 0 when no label has two samples.
double spread_within(const at::Tensor& rewards, const at::Tensor& labels) {
  const std::int64_t n = rewards.size(0);
  if (!labels.defined()) return n > 1 ? rewards.std().item<double>() : 0;
  const auto [distinct, places, counts] = at::_unique2(labels, true, true, true);
  const at::Tensor means =
      at::zeros({distinct.size(0)}, at::kDouble).index_add(0, places, rewards) / counts;
  const double squares = (rewards - means.index_select(0, places)).square().sum().item<double>();
  return n > distinct.size(0) ? std::sqrt(squares / static_cast<double>(n - distinct.size(0))) : 0;
}

// "reward[0].scale = 0.31", or what to multiply all scales with.
std::string scales_times(const std::vector<double>& scales, double factor) {
  if (scales.size() == 1) return cat("set reward[0].scale = ", compact(scales[0] * factor, 2));
  return cat("multiply every reward[].scale by ", compact(factor, 2));
}

}  // namespace

double factor_for_effective_size(const at::Tensor& rewards, const at::Tensor& labels,
                                 double share) {
  const double wanted = share * static_cast<double>(rewards.size(0));
  const auto size_at = [&](double factor) {
    return importance_weights(rewards * factor, labels).ess;
  };
  if (size_at(1) >= wanted) return 1;
  double low = std::log(1e-12);
  double high = 0;  // of the factor: scales may be off by orders of magnitude
  for (int i = 0; i < 40; ++i) {
    const double middle = 0.5 * (low + high);
    (size_at(std::exp(middle)) >= wanted ? low : high) = middle;
  }
  return std::exp(low);
}

std::vector<RunWarning> diagnose_base_rewards(const at::Tensor& rewards, const at::Tensor& labels,
                                              const std::vector<double>& scales) {
  const at::Tensor r = rewards.to(at::kDouble);
  if (!(r != r[0]).any().item<bool>()) {
    return {
        {"reward-constant",
         cat("every one of ", r.size(0), " base samples scores ", compact(r[0].item<double>())),
         "nothing is learned until scores differ, and p* cannot be told from the base",
         "check the reward's inputs; when success is rare, raise evaluation.base_samples to see "
         "how rare, and batch"}};
  }
  const double n = static_cast<double>(r.size(0));
  const double laws = static_cast<double>(laws_of(labels));
  const double spread = spread_within(r, labels);
  const double size = importance_weights(r, labels).ess;
  const std::string seen = cat(
      "the rewards of ", r.size(0), " base samples spread over ", compact(spread, 3),
      " nats (standard deviation), and their importance weights have an effective sample size of ",
      compact(size, 3));
  if (size < laws * std::min(kEffectiveSamples, 0.25 * n / laws)) {
    const double factor = factor_for_effective_size(r, labels, kWantedShare);
    const std::string change = cat(scales_times(scales, factor), " for an effective size of ",
                                   compact(100 * kWantedShare, 2),
                                   " %, or more evaluation.base_samples and check.base_samples");
    if (spread > kFarSpread) {
      return {{"scale", seen,
               "p* lies far outside of what the base samples: log Z, gaps and the tilted-law check "
               "mean nothing, and training has to find samples that the base never makes",
               change}};
    }
    return {{"effective-size", seen,
             "log Z, gaps and the tilted-law check rest on a handful of samples", change}};
  }
  if (spread > 0 && spread < kNearSpread) {
    return {
        {"scale", seen,
         cat("p* differs from the base by about ", compact(spread, 1),
             " standard deviations of the reward, less than the tilted-law check can see"),
         cat(scales_times(scales, 1 / spread), " for a shift of about one standard deviation")}};
  }
  return {};
}

std::optional<RunWarning> diagnose_zero_gradients(double share) {
  if (!(share > kZeroGradients)) return std::nullopt;
  return RunWarning{"reward-gradient",
                    cat("the reward's gradient is exactly zero at ", compact(100 * share, 3),
                        " % of the samples"),
                    "methods that use it see no jumps of the reward: where it is made of steps, "
                    "thresholds or saturated, its tilted law is missed",
                    "choose a smoother reward, method.smoothing, or a method that needs no reward "
                    "gradient (tiltflow list methods)"};
}

std::optional<RunWarning> diagnose_class_balance(const std::vector<std::int64_t>& counts,
                                                 const std::vector<std::string>& names) {
  const auto name = [&](std::size_t i) { return i < names.size() ? names[i] : std::to_string(i); };
  std::vector<std::string> empty;
  for (std::size_t i = 0; i < counts.size(); ++i) {
    if (counts[i] == 0) empty.push_back(name(i));
  }
  if (!empty.empty()) {
    const std::size_t shown = std::min<std::size_t>(empty.size(), 5);
    std::string seen =
        cat(empty.size(), " of ", counts.size(), " classes have no picture: ",
            join({empty.begin(), empty.begin() + static_cast<std::ptrdiff_t>(shown)}, ", "));
    if (shown < empty.size()) seen += ", ...";
    return RunWarning{"classes", seen,
                      "what is trained for their labels is left at its random start",
                      "remove the empty folders, or model.args num_classes"};
  }
  if (counts.size() < 2) return std::nullopt;
  const auto [least, most] = std::minmax_element(counts.begin(), counts.end());
  if (static_cast<double>(*most) <= kUnbalanced * static_cast<double>(*least)) return std::nullopt;
  return RunWarning{
      "classes",
      cat("class ", name(static_cast<std::size_t>(most - counts.begin())), " has ", *most,
          " pictures, class ", name(static_cast<std::size_t>(least - counts.begin())), " ", *least),
      "unconditional samples follow these shares, and the small class is learned from few pictures",
      "balance data.path if that is not wanted"};
}

}  // namespace tiltflow
