#include "tiltflow/eval/tilted_check.h"

#include <algorithm>
#include <cmath>

#include "tiltflow/base/progress.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/json_lines.h"
#include "tiltflow/reward/importance.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/tensor/parallel.h"

namespace tiltflow {
namespace {

// Per-sample quantities from which all statistics are made.
struct Observed {
  at::Tensor reward;   // [N] fp64
  at::Tensor ink;      // [N] fp64 or undefined
  at::Tensor classes;  // [N] int64 or undefined
  at::Tensor pixels;   // [N, D] fp64
};

Observed observe(const Draws& draws, const StateReward& reward, const Classifier* judge) {
  const at::NoGradGuard no_grad;
  Observed out;
  out.reward = reward.score(draws.x, draws.labels).to(at::kDouble);
  const at::Tensor decoded = reward.decode(draws.x);
  out.pixels = decoded.flatten(1).to(at::kDouble);
  if (decoded.dim() == 4) {
    out.ink = out.pixels.mean(1);
    if (judge) {
      std::vector<at::Tensor> parts(static_cast<std::size_t>((decoded.size(0) + 127) / 128));
      parallel_chunks(decoded.size(0), 128, [&](std::int64_t begin, std::int64_t end) {
        parts[static_cast<std::size_t>(begin / 128)] =
            judge->logits(decoded.narrow(0, begin, end - begin)).argmax(1);
      });
      out.classes = at::cat(parts);
    }
  }
  return out;
}

std::vector<std::string> statistic_names(const Observed& o, std::int64_t classes) {
  std::vector<std::string> names{"reward mean", "reward deviation"};
  if (o.ink.defined()) names.insert(names.end(), {"ink mean", "ink deviation"});
  if (o.classes.defined()) {
    names.push_back("intra-class variance");
    for (std::int64_t c = 0; c < classes; ++c) names.push_back(cat("share of class ", c));
  } else if (!o.ink.defined()) {
    for (std::int64_t d = 0; d < std::min<std::int64_t>(8, o.pixels.size(1)); ++d) {
      names.push_back(cat("mean of x", d));
    }
  }
  return names;
}

std::vector<double> statistics(const Observed& o, std::int64_t classes, const at::Tensor& index,
                               const at::Tensor& w) {
  std::vector<double> out;
  const auto mean_and_deviation = [&](const at::Tensor& x) {
    const at::Tensor v = x.index_select(0, index);
    const double mean = at::dot(w, v).item<double>();
    out.push_back(mean);
    out.push_back(std::sqrt(std::max(0.0, at::dot(w, (v - mean).square()).item<double>())));
  };
  mean_and_deviation(o.reward);
  if (o.ink.defined()) mean_and_deviation(o.ink);
  if (o.classes.defined()) {
    // mean over pixels of Var(pixel | class), averaged over the classes' shares
    const at::Tensor one_hot =
        at::one_hot(o.classes.index_select(0, index), classes).to(at::kDouble) *
        w.unsqueeze(1);  // [n, C]
    const at::Tensor share = one_hot.sum(0);
    const at::Tensor x = o.pixels.index_select(0, index);
    const at::Tensor means = at::matmul(one_hot.t(), x) / share.clamp_min(1e-300).unsqueeze(1);
    out.push_back(
        (at::matmul(w, x.square()).mean() - (share * means.square().mean(1)).sum()).item<double>());
    for (std::int64_t c = 0; c < classes; ++c) out.push_back(share[c].item<double>());
  } else if (!o.ink.defined()) {
    const at::Tensor means = at::matmul(w, o.pixels.index_select(0, index));
    for (std::int64_t d = 0; d < std::min<std::int64_t>(8, o.pixels.size(1)); ++d) {
      out.push_back(means[d].item<double>());
    }
  }
  return out;
}

void fill_histogram(SamplerCheck& check, const at::Tensor& base, const at::Tensor& weights,
                    const at::Tensor& tuned) {
  constexpr int kBins = 32;
  const double low = std::min(base.min().item<double>(), tuned.min().item<double>());
  const double high = std::max(base.max().item<double>(), tuned.max().item<double>());
  if (!(high > low)) return;
  check.edges.clear();
  for (int i = 0; i <= kBins; ++i) check.edges.push_back(low + (high - low) * i / kBins);
  const auto density = [&](const at::Tensor& x, const at::Tensor& w) {
    const at::Tensor bin =
        ((x - low) * (kBins / (high - low))).floor().clamp(0, kBins - 1).to(at::kLong);
    const at::Tensor mass =
        at::zeros({kBins}, at::kDouble).index_add(0, bin, w) * (kBins / (high - low));
    return std::vector<double>(mass.data_ptr<double>(), mass.data_ptr<double>() + kBins);
  };
  check.base_density = density(base, at::full_like(base, 1.0 / static_cast<double>(base.size(0))));
  check.predicted_density = density(base, weights);
  check.tuned_density =
      density(tuned, at::full_like(tuned, 1.0 / static_cast<double>(tuned.size(0))));
}

at::Tensor evenly(const at::Tensor& index) {
  return at::full({index.size(0)}, 1.0 / static_cast<double>(index.size(0)), at::kDouble);
}

void append(std::vector<double>& out, const std::vector<double>& more) {
  out.insert(out.end(), more.begin(), more.end());
}

// Base and tuned samples of one sampler, and what is compared of them.
struct Compared {
  Draws from_base, from_tuned;
  Observed base, tuned;
  ImportanceWeights weights;  // of the base samples
  std::int64_t classes = 0;

  // r - cost of the tuned paths; undefined under a deterministic sampler.
  at::Tensor net_reward() const {
    return from_tuned.cost.defined() ? tuned.reward - from_tuned.cost.to(at::kDouble)
                                     : at::Tensor();
  }
  // Every condition is normalised by the samples that are looked at, so that it keeps its share.
  ImportanceWeights weights_of(const at::Tensor& of_base) const {
    const at::Tensor labels =
        from_base.labels.defined() ? from_base.labels.index_select(0, of_base) : at::Tensor();
    return importance_weights(base.reward.index_select(0, of_base), labels);
  }
  // Base, p*, tuned and tuned - p* of every statistic; the share of the first one's shift; the gap,
  // when paths have a cost.
  std::vector<double> values(const at::Tensor& of_base, const at::Tensor& of_tuned) const {
    const ImportanceWeights tilt = weights_of(of_base);
    const std::vector<double> untilted = statistics(base, classes, of_base, evenly(of_base));
    const std::vector<double> predicted =
        statistics(base, classes, of_base, tilt.log_weights.softmax(0));
    const std::vector<double> now = statistics(tuned, classes, of_tuned, evenly(of_tuned));
    std::vector<double> out = untilted;
    append(out, predicted);
    append(out, now);
    for (std::size_t i = 0; i < now.size(); ++i) out.push_back(now[i] - predicted[i]);
    out.push_back((now[0] - untilted[0]) / (predicted[0] - untilted[0]));
    if (const at::Tensor net = net_reward(); net.defined()) {
      out.push_back(tilt.log_z - net.index_select(0, of_tuned).mean().item<double>());
    }
    return out;
  }
};

SamplerCheck judge(const Compared& c, const std::string& sampler,
                   const TiltedCheckOptions& options) {
  SamplerCheck check;
  check.sampler = sampler;
  check.base_samples = c.base.reward.size(0);
  check.tuned_samples = c.tuned.reward.size(0);
  check.ess = c.weights.ess;
  check.log_z = {c.weights.log_z, c.weights.log_z_se};
  const std::vector<std::string> names = statistic_names(c.base, c.classes);
  const std::size_t count = names.size();
  const std::vector<Estimate> found =
      jackknife(check.base_samples, check.tuned_samples,
                [&](const at::Tensor& of_base, const at::Tensor& of_tuned) {
                  return c.values(of_base, of_tuned);
                });
  for (std::size_t i = 0; i < count; ++i) {
    ComparedStatistic s{names[i], found[i], found[count + i], found[2 * count + i],
                        found[3 * count + i]};
    s.tolerance = options.standard_errors * s.difference.se +
                  options.allowance * std::abs(s.predicted.value - s.base.value);
    s.agrees = std::abs(s.difference.value) <= s.tolerance;
    check.statistics.push_back(std::move(s));
  }
  check.shift_reached = found[4 * count];
  if (c.from_tuned.cost.defined()) {
    check.control_cost = mean_estimate(c.from_tuned.cost);
    check.gap = found.back();
    const PathGap sharp = path_gap(c.tuned.reward, c.from_tuned.log_ratio, c.from_tuned.labels);
    check.path_gap = {sharp.gap, sharp.gap_se};
    check.path_ess = sharp.ess;
  }
  const bool ink = c.base.ink.defined();
  check.histogram_of = ink ? "ink" : "reward";
  fill_histogram(check, ink ? c.base.ink : c.base.reward, c.weights.log_weights.softmax(0),
                 ink ? c.tuned.ink : c.tuned.reward);
  return check;
}

ConditionGroups groups_of(const LabelSource& labels, const TiltedCheckOptions& options) {
  GroupingOptions grouping;
  grouping.least = options.per_condition;
  grouping.most = options.conditions;
  grouping.run = kJackknifeGroups;
  const bool fewer = options.tuned_samples < options.base_samples;
  return in_groups(labels, labels, std::min(options.base_samples, options.tuned_samples), grouping,
                   fewer ? "check.tuned_samples" : "check.base_samples");
}

}  // namespace

TiltedCheck check_tilted_law(const VelocityField& base, const VelocityField& tuned,
                             const Path& path, const StateReward& reward, at::IntArrayRef shape,
                             const RandomStreams& streams, const LabelSource& labels,
                             const TiltedCheckOptions& options) {
  const ConditionGroups groups = groups_of(labels, options);
  const std::int64_t of_base = groups.whole(options.base_samples);
  const std::int64_t of_tuned = groups.whole(options.tuned_samples);
  TiltedCheck out;
  out.law = law_text(groups);
  Progress progress("check",
                    static_cast<std::int64_t>(options.samplers.size()) * (of_base + of_tuned));
  std::int64_t before = 0;
  for (const SamplerConfig& sampler : options.samplers) {
    const auto drawn = [&](const VelocityField& field, std::int64_t n,
                           const VelocityField* reference) {
      DrawOptions draws;
      draws.n = n;
      draws.step = RunKey::kLawCheck;  // in common: differences have smaller errors than either
      draws.reference = reference;
      draws.progress = [&](std::int64_t done) { progress.update(before + done, sampler.name); };
      Draws made = draw(field, sampler, path, shape, streams, groups.labels, draws);
      before += n;
      return made;
    };
    Compared c;
    c.classes = options.judge ? options.judge->config().num_classes : 0;
    c.from_base = drawn(base, of_base, nullptr);
    c.from_tuned = drawn(tuned, of_tuned, &base);
    c.base = observe(c.from_base, reward, options.judge.get());
    c.tuned = observe(c.from_tuned, reward, options.judge.get());
    c.weights = importance_weights(c.base.reward, c.from_base.labels);
    out.samplers.push_back(judge(c, sampler.name, options));
  }
  out.passed = std::all_of(out.samplers.begin(), out.samplers.end(), [](const SamplerCheck& s) {
    return std::all_of(s.statistics.begin(), s.statistics.end(),
                       [](const ComparedStatistic& one) { return one.agrees; });
  });
  return out;
}

nlohmann::ordered_json to_json(const TiltedCheck& check) {
  const auto estimate = [](const Estimate& e) {
    return nlohmann::ordered_json{{"value", json_number(e.value)}, {"se", json_number(e.se)}};
  };
  nlohmann::ordered_json out{
      {"passed", check.passed}, {"law", check.law}, {"samplers", nlohmann::ordered_json::array()}};
  for (const SamplerCheck& s : check.samplers) {
    nlohmann::ordered_json item{{"sampler", s.sampler},
                                {"ess", json_number(s.ess)},
                                {"base_samples", s.base_samples},
                                {"tuned_samples", s.tuned_samples},
                                {"log_z", estimate(s.log_z)},
                                {"control_cost", estimate(s.control_cost)},
                                {"gap", estimate(s.gap)},
                                {"path_gap", estimate(s.path_gap)},
                                {"path_ess", json_number(s.path_ess)},
                                {"shift_reached", estimate(s.shift_reached)}};
    for (const ComparedStatistic& c : s.statistics) {
      item["statistics"].push_back({{"name", c.name},
                                    {"base", estimate(c.base)},
                                    {"predicted", estimate(c.predicted)},
                                    {"tuned", estimate(c.tuned)},
                                    {"difference", estimate(c.difference)},
                                    {"tolerance", json_number(c.tolerance)},
                                    {"agrees", c.agrees}});
    }
    item["histogram"] = {{"of", s.histogram_of},
                         {"edges", s.edges},
                         {"base", s.base_density},
                         {"predicted", s.predicted_density},
                         {"tuned", s.tuned_density}};
    out["samplers"].push_back(std::move(item));
  }
  return out;
}

std::string table_text(const TiltedCheck& check) {
  std::string out = cat("\nlaw checked: ", check.law, "\n");
  const auto cell = [](const Estimate& e) {
    return pad_left(cat(fixed(e.value, 4), " +- ", fixed(e.se, 4)), 19);
  };
  for (const SamplerCheck& s : check.samplers) {
    out += cat("\nsampler ", s.sampler, ": ", s.base_samples, " base samples (ESS ",
               fixed(s.ess, 0), "), ", s.tuned_samples, " tuned; log Z ", fixed(s.log_z.value, 3),
               " +- ", fixed(s.log_z.se, 3));
    if (s.control_cost.value > 0) {
      out += cat("\n  control cost ", fixed(s.control_cost.value, 3), " nats; gap ",
                 fixed(s.gap.value, 3), " +- ", fixed(s.gap.se, 3),
                 " with log Z of the base samples, ", fixed(s.path_gap.value, 4), " +- ",
                 fixed(s.path_gap.se, 4), " from the tuned paths alone (their ESS ",
                 fixed(100 * s.path_ess, 0), " %)");
    }
    out += cat("\n  the tuned mean reward covers ", fixed(100 * s.shift_reached.value, 0), " +- ",
               fixed(100 * s.shift_reached.se, 0), " % of the shift from base to p*");
    out += cat("\n", pad_right("  statistic", 24), pad_left("base", 19),
               pad_left("p* (predicted)", 19), pad_left("tuned", 19), pad_left("tuned - p*", 19),
               "  tolerance\n");
    for (const ComparedStatistic& c : s.statistics) {
      out +=
          cat(pad_right("  " + c.name, 24), cell(c.base), cell(c.predicted), cell(c.tuned),
              cell(c.difference), "  ", fixed(c.tolerance, 4), c.agrees ? "  ok\n" : "  DIFFERS\n");
    }
  }
  out += check.passed ? "\ntilted-law check PASSED: the tuned model samples p_base exp(r) within "
                        "the stated errors\n"
                      : "\ntilted-law check FAILED: see the rows marked DIFFERS\n";
  return out;
}

}  // namespace tiltflow
