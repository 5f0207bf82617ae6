#include "tiltflow/train/reward_terms.h"

#include "tiltflow/base/strings.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

const std::string kMetric = "reward_unscaled";

}  // namespace

std::vector<std::string> term_suffixes(const std::vector<RewardTerm>& terms) {
  if (terms.size() == 1) return {""};
  std::vector<std::string> out;
  std::map<std::string, int> count;
  for (const RewardTerm& term : terms) {
    const int number = ++count[term.name];
    out.push_back(number == 1 ? cat("_", term.name) : cat("_", term.name, "_", number));
  }
  return out;
}

TermMeter::TermMeter(const StateReward& reward)
    : reward_(reward.observed([this](const TermScores& scores) { seen_.push_back(scores); })) {}

void TermMeter::add_to(MetricSums& metrics, const std::vector<std::string>& suffixes,
                       const at::Tensor& rewards, std::int64_t n) const {
  at::Tensor sum;
  double count = 0;
  for (const TermScores& scores : seen_) {
    if (scores.score.size(0) != n ||
        scores.terms.size(1) != static_cast<std::int64_t>(suffixes.size())) {
      continue;
    }
    if (rewards.defined() && at::equal(scores.score, rewards)) {
      sum = scores.terms;
      count = 1;
      break;
    }
    sum = sum.defined() ? sum + scores.terms : scores.terms;
    ++count;
  }
  if (!sum.defined()) return;
  const at::Tensor totals = sum.to(at::kDouble).sum(0) / count;  // [terms]
  for (std::size_t i = 0; i < suffixes.size(); ++i) {
    metrics.add(kMetric + suffixes[i], totals[static_cast<std::int64_t>(i)].item<double>(),
                static_cast<double>(n));
  }
}

std::string unscaled_text(const std::map<std::string, double>& metrics,
                          const std::vector<std::string>& suffixes, const std::string& prefix) {
  std::vector<std::string> parts;
  for (const std::string& suffix : suffixes) {
    const auto found = metrics.find(cat(prefix, kMetric, suffix));
    if (found == metrics.end()) continue;
    parts.push_back(suffix.empty() ? compact(found->second, 4)
                                   : cat(suffix.substr(1), " ", compact(found->second, 3)));
  }
  if (parts.empty()) return "";
  return cat(" (unscaled", suffixes.size() > 1 ? ": " : " ", join(parts, ", "), ")");
}

}  // namespace tiltflow
