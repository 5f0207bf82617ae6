#include "tiltflow/eval/speed.h"

#include <algorithm>
#include <chrono>
#include <mutex>

#include "tiltflow/base/error.h"
#include "tiltflow/finetune/adjoint_matching.h"
#include "tiltflow/models/model_file.h"
#include "tiltflow/models/sit/config.h"
#include "tiltflow/models/runtime_config.h"
#include "tiltflow/sampler/fields.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/tensor/parallel.h"

namespace tiltflow {
namespace {
using Clock = std::chrono::steady_clock;
double since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }
}  // namespace

double gemm_peak(int workers, bool bf16) {
  const at::NoGradGuard no_grad;
  constexpr std::int64_t kSize = 512, kProducts = 24;
  const ThreadPolicy before = thread_policy();
  set_thread_policy({workers, 1});
  const at::Tensor a = at::ones({kSize, kSize}, bf16 ? at::kBFloat16 : at::kFloat);
  double best = 0;
  for (int repeat = 0; repeat < 5; ++repeat) {
    const auto begin = Clock::now();
    parallel_for(workers, [&](std::int64_t) { for (int i = 0; i < kProducts; ++i) at::matmul(a, a); });
    best = std::max(best, 2.0 * kSize * kSize * kSize * kProducts * workers / since(begin) / 1e9);
  }
  set_thread_policy(before);
  return best;
}

double sit_forward_gflop(const VelocityModel& model) {
  const SitConfig c = sit_config_from_args(model.spec().args);
  const double w = static_cast<double>(c.hidden_size), n = static_cast<double>(c.tokens());
  const double block = n * (4 * w * w + 2 * w * w * c.mlp_ratio) + 2 * n * n * w + 6 * w * w;
  const double ends = n * w * static_cast<double>(c.patch_size * c.patch_size * (c.in_channels + c.out_channels())) + 2 * w * w + 256 * w + w * w;
  return 2 * (static_cast<double>(c.depth) * block + ends) / 1e9;
}

nlohmann::ordered_json bench_adjoint_matching(const AmBenchOptions& o) {
  const auto created = create_velocity_model(o.model, 1, o.runtime);
  // Draw every weight, so that no layer is trivially zero.
  ParameterSet weights;
  std::uint32_t key = 0;
  for (const auto& [name, tensor] : created->parameters()) weights.add(name, created->is_buffer(name) ? tensor : RandomStreams(1).normal(Purpose::kInit, 5, ++key, 0, 1, tensor.sizes())[0] * 0.03);
  const std::shared_ptr<const VelocityModel> model = created->rebind(weights, {});
  PolicyConfig policy_config;
  policy_config.kind = o.policy;
  Policy policy = make_policy({model, make_path("linear"), "velocity"}, policy_config, 1);
  const auto base = std::make_shared<CountingField>(policy.base), tuned = std::make_shared<CountingField>(policy.tuned);
  policy.base = base, policy.tuned = tuned;
  RewardTerm term;
  term.name = "quadratic", term.center = {0.5}, term.scale = 0.1;
  const StateReward reward(make_weighted_sum({term}), pixel_decoder());
  const auto path = make_path("linear");
  SamplerConfig sampler;
  sampler.steps = o.steps;
  const TransitionTable table = table_of(sampler, *path);
  AdjointMatchingConfig config = adjoint_matching_preset("exact", o.steps);
  config.loss_steps = o.loss_steps;
  AdjointMatching method(config);
  const RandomStreams streams(1);
  const LabelSource labels = no_labels();
  const FinetuneContext context{policy, reward, *path, table, streams, labels, model->sample_shape()};

  std::vector<double> seconds;
  double peak = 0;
  for (std::int64_t repeat = 0; repeat <= o.repeats; ++repeat) {  // the first one warms up
    base->reset(), tuned->reset();
    method.begin_step(context, repeat, 0);
    const auto begin = Clock::now();
    const at::AutoGradMode grad(true);
    parallel_chunks(o.batch, o.item, [&](std::int64_t first, std::int64_t end) {
      const LossReport report = method.loss(context, method.collect(context, repeat, first, end - first, false), o.batch);
      torch::autograd::grad({report.loss}, policy.trainable.tensors(), {}, false, false, true);
    });
    if (repeat > 0) seconds.push_back(since(begin));
    peak = std::max(peak, gemm_peak(thread_policy().workers, o.runtime.precision == MatmulPrecision::kBf16));
  }
  std::sort(seconds.begin(), seconds.end());
  const double per_sample = static_cast<double>(base->count() + tuned->count()) / static_cast<double>(o.batch) + static_cast<double>(o.loss_steps * policy.backward_cost);
  const double rate = per_sample * static_cast<double>(o.batch) * sit_forward_gflop(*model) / seconds.front();
  return {{"bench", "am"}, {"policy", o.policy}, {"batch", o.batch}, {"steps", o.steps}, {"loss_steps", o.loss_steps}, {"model_args", o.model.args},
          {"precision", o.runtime.precision == MatmulPrecision::kBf16 ? "bf16" : "fp32"}, {"kernels", kernels_name(o.runtime)}, {"workers", thread_policy().workers}, {"threads_per_worker", thread_policy().intra_op},
          {"seconds_per_iteration_min", seconds.front()}, {"seconds_per_iteration_median", seconds[seconds.size() / 2]}, {"repeats", o.repeats},
          {"network_evaluations_per_sample", per_sample}, {"forward_gflop_per_sample", sit_forward_gflop(*model)}, {"gflops", rate},
          {"gemm_peak_gflops", peak}, {"fraction_of_gemm_peak", rate / peak}, {"peak_memory_mb", peak_memory_bytes() / 1e6}};
}

}  // namespace tiltflow
