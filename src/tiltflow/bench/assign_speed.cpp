#include "tiltflow/bench/assign_speed.h"

#include <algorithm>
#include <chrono>

#include "tiltflow/models/generator/gan.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/tensor/parallel.h"
#include "tiltflow/tensor/statistics.h"

namespace tiltflow {
namespace {

struct Timed {
  double seconds = 0;
  AssignResult result;
};

AssignTargets first_of(const AssignTargets& t, std::int64_t begin, std::int64_t n) {
  return {t.images.narrow(0, begin, n),
          t.labels.defined() ? t.labels.narrow(0, begin, n) : at::Tensor(),
          t.ids.narrow(0, begin, n)};
}

Timed timed(const Assigner& assigner, const AssignTargets& targets) {
  const auto begin = std::chrono::steady_clock::now();
  AssignResult result = assigner.assign(targets, 0);
  return {std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count(),
          std::move(result)};
}

}  // namespace

nlohmann::ordered_json bench_assign(const Generator& g, const AssignTargets& given,
                                    const AssignBenchOptions& o, const FeatureFunction& features) {
  const RandomStreams streams(0);
  const std::int64_t n = std::min(o.targets, given.images.size(0));
  const AssignTargets targets = first_of(given, 0, n);
  const Assigner assigner(g, o.assign, streams, features);
  timed(assigner, first_of(targets, 0, std::min<std::int64_t>(n, 2)));  // warm up
  const Timed ours = timed(assigner, targets);
  const Estimate loss = mean_estimate(ours.result.loss);
  nlohmann::ordered_json out{{"bench", "assign"},
                             {"workers", thread_policy().workers},
                             {"targets", n},
                             {"targets_per_second", static_cast<double>(n) / ours.seconds},
                             {"loss", loss.value},
                             {"loss_se", loss.se},
                             {"loss_first_noise", ours.result.start_loss.mean().item<double>()},
                             {"forward_rows_per_target",
                              static_cast<double>(ours.result.forwards) / static_cast<double>(n)},
                             {"backward_rows_per_target",
                              static_cast<double>(ours.result.backwards) / static_cast<double>(n)}};
  const std::int64_t slow = std::min(o.reference_targets, n);
  if (slow == 0) return out;
  AssignConfig reference;
  reference.map = "expm";
  reference.steps = o.reference_steps;
  reference.screen = 1;
  reference.restarts = 1;
  reference.optimizer = "adam";
  reference.learning_rate = 0.05;
  reference.tile = 1;
  reference.loss = o.assign.loss;
  const Assigner one_by_one(g, reference, streams, features);
  double seconds = 0;
  std::vector<at::Tensor> losses;
  for (std::int64_t i = 0; i < slow; ++i) {
    const Timed one = timed(one_by_one, first_of(targets, i, 1));
    seconds += one.seconds;
    losses.push_back(one.result.loss);
  }
  const double reference_rate = static_cast<double>(slow) / seconds;
  out["reference_targets"] = slow;
  out["reference_targets_per_second"] = reference_rate;
  out["reference_loss"] = at::cat(losses).mean().item<double>();
  out["loss_of_these_targets"] = ours.result.loss.narrow(0, 0, slow).mean().item<double>();
  out["times_as_fast"] = static_cast<double>(n) / ours.seconds / reference_rate;
  return out;
}

std::unique_ptr<Generator> bench_generator(MatmulPrecision precision) {
  return make_gan_generator({}, init_gan_generator({}, RandomStreams(0)), precision);
}

AssignTargets bench_targets(const Generator& g, std::int64_t n) {
  const at::NoGradGuard no_grad;
  const RandomStreams streams(1);
  const at::Tensor labels =
      g.classes() > 0 ? at::remainder(at::arange(n, at::kLong), g.classes()) : at::Tensor();
  return {g.generate(streams.normal(Purpose::kPrior, 0, 0, 0, n, g.noise_shape()), labels), labels,
          at::arange(n, at::kLong)};
}

}  // namespace tiltflow
