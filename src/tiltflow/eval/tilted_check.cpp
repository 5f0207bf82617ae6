#include "tiltflow/eval/tilted_check.h"

#include <cmath>

#include "tiltflow/base/progress.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/json_lines.h"
#include "tiltflow/reward/importance.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/tensor/parallel.h"

namespace tiltflow {
namespace {

constexpr std::uint32_t kNoiseKey =
    0xffffe000u;  // of base and tuned samples alike: their differences have much smaller errors
                  // than either

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

}  // namespace

TiltedCheck check_tilted_law(const VelocityField& base, const VelocityField& tuned,
                             const Path& path, const StateReward& reward, at::IntArrayRef shape,
                             const RandomStreams& streams, const LabelSource& labels,
                             const TiltedCheckOptions& options) {
  TiltedCheck out;
  out.passed = true;
  const std::int64_t classes = options.judge ? options.judge->config().num_classes : 0;
  const auto total = static_cast<std::int64_t>(options.samplers.size()) *
                     (options.base_samples + options.tuned_samples);
  Progress progress("check", total);
  std::int64_t before = 0;
  for (const SamplerConfig& sampler : options.samplers) {
    const auto run = [&](const VelocityField& field, std::int64_t n,
                         const VelocityField* reference) {
      DrawOptions draw_options;
      draw_options.n = n;
      draw_options.step = kNoiseKey;
      draw_options.reference = reference;
      draw_options.progress = [&](std::int64_t done) {
        progress.update(before + done, sampler.name);
      };
      const Draws draws = draw(field, sampler, path, shape, streams, labels, draw_options);
      before += n;
      return draws;
    };
    const Draws from_base = run(base, options.base_samples, nullptr);
    const Draws from_tuned = run(tuned, options.tuned_samples, &base);
    const Observed b = observe(from_base, reward, options.judge.get());
    const Observed t = observe(from_tuned, reward, options.judge.get());

    SamplerCheck check;
    check.sampler = sampler.name;
    check.base_samples = options.base_samples;
    check.tuned_samples = options.tuned_samples;
    const ImportanceWeights weights = importance_weights(b.reward, from_base.labels);
    check.ess = weights.ess;
    check.log_z = {weights.log_z, weights.log_z_se};
    const at::Tensor net =
        from_tuned.cost.defined() ? t.reward - from_tuned.cost.to(at::kDouble) : at::Tensor();
    // base, p*, tuned, tuned - p* of every statistic; share of the first one's shift; gap
    const std::vector<std::string> names = statistic_names(b, classes);
    const std::size_t count = names.size();
    const std::vector<Estimate> found = jackknife(
        options.base_samples, options.tuned_samples,
        [&](const at::Tensor& of_base, const at::Tensor& of_tuned) {
          const auto evenly = [](const at::Tensor& index) {
            return at::full({index.size(0)}, 1.0 / static_cast<double>(index.size(0)), at::kDouble);
          };
          std::vector<double> out = statistics(b, classes, of_base, evenly(of_base));
          const std::vector<double> predicted = statistics(
              b, classes, of_base, weights.log_weights.index_select(0, of_base).softmax(0));
          const std::vector<double> tuned_now = statistics(t, classes, of_tuned, evenly(of_tuned));
          out.insert(out.end(), predicted.begin(), predicted.end());
          out.insert(out.end(), tuned_now.begin(), tuned_now.end());
          for (std::size_t i = 0; i < count; ++i) out.push_back(tuned_now[i] - predicted[i]);
          out.push_back((tuned_now[0] - out[0]) / (predicted[0] - out[0]));
          if (net.defined()) {
            out.push_back(importance_weights(b.reward.index_select(0, of_base),
                                             from_base.labels.defined()
                                                 ? from_base.labels.index_select(0, of_base)
                                                 : at::Tensor())
                              .log_z -
                          net.index_select(0, of_tuned).mean().item<double>());
          }
          return out;
        });
    for (std::size_t i = 0; i < count; ++i) {
      ComparedStatistic s{names[i], found[i], found[count + i], found[2 * count + i],
                          found[3 * count + i]};
      s.tolerance = options.standard_errors * s.difference.se +
                    options.allowance * std::abs(s.predicted.value - s.base.value);
      s.agrees = std::abs(s.difference.value) <= s.tolerance;
      out.passed = out.passed && s.agrees;
      check.statistics.push_back(std::move(s));
    }
    check.shift_reached = found[4 * count];
    if (net.defined()) {
      check.control_cost = mean_estimate(from_tuned.cost);
      check.gap = found.back();
      const PathGap sharp = path_gap(t.reward, from_tuned.log_ratio, from_tuned.labels);
      check.path_gap = {sharp.gap, sharp.gap_se};
      check.path_ess = sharp.ess;
    }
    check.histogram_of = b.ink.defined() ? "ink" : "reward";
    fill_histogram(check, b.ink.defined() ? b.ink : b.reward, weights.log_weights.softmax(0),
                   t.ink.defined() ? t.ink : t.reward);
    out.samplers.push_back(std::move(check));
  }
  return out;
}

nlohmann::ordered_json to_json(const TiltedCheck& check) {
  const auto estimate = [](const Estimate& e) {
    return nlohmann::ordered_json{{"value", json_number(e.value)}, {"se", json_number(e.se)}};
  };
  nlohmann::ordered_json out{{"passed", check.passed},
                             {"samplers", nlohmann::ordered_json::array()}};
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
  std::string out;
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
