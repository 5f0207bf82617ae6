#include "tiltflow/bench/network_speed.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <ctime>
#include <functional>
#include <limits>

#include "tiltflow/base/error.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/finetune/adjoint_matching.h"
#include "tiltflow/models/model_file.h"
#include "tiltflow/models/runtime_config.h"
#include "tiltflow/models/sit/config.h"
#include "tiltflow/sampler/fields.h"
#include "tiltflow/tensor/allocation_count.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/tensor/device.h"
#include "tiltflow/tensor/parallel.h"
#include "tiltflow/train/optimizer.h"
#include "tiltflow/train/pretraining.h"
#include "tiltflow/train/trainer.h"

namespace tiltflow {
namespace {
using Clock = std::chrono::steady_clock;
double since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}
}  // namespace

double gemm_peak(int workers, bool bf16) {
  const at::NoGradGuard no_grad;
  constexpr double kSecondsPerRepeat = 0.06;
  constexpr double kMostProducts = 24;
  const std::int64_t size = compute_device().is_cpu() ? 512 : 8192;
  const ThreadPolicy before = thread_policy();
  set_thread_policy({workers, 1});
  const at::TensorOptions type(bf16 ? at::kBFloat16 : at::kFloat);
  const at::Tensor a =
      compute_device().is_cpu()
          ? at::ones({size, size}, type)
          : at::randn(
                {size, size},
                type.device(compute_device()));  // a GPU is faster on ones: it draws less power
  double best = 0;
  double products = 1;  // the first two repeats say how many fit: bf16 takes a tenth of a second
                        // each on some processors
  for (int repeat = 0; repeat < 6; ++repeat) {
    const auto begin = Clock::now();
    parallel_for(workers, [&](std::int64_t) {
      at::Tensor product;
      for (int i = 0; i < products; ++i) product = at::matmul(a, a);
      product[0][0].item<float>();  // waits for a device
    });
    const double seconds = since(begin);
    best = std::max(
        best, 2.0 * static_cast<double>(size * size * size) * products * workers / seconds / 1e9);
    if (repeat < 2) {
      products = std::clamp(std::floor(kSecondsPerRepeat * products / seconds), 1.0, kMostProducts);
    }
  }
  set_thread_policy(before);
  return best;
}

double copy_rate(int workers) {
  const at::NoGradGuard no_grad;
  const bool cpu = compute_device().is_cpu();
  const std::int64_t size = (cpu ? 64 : 256) << 20;
  const ThreadPolicy before = thread_policy();
  set_thread_policy({workers, 1});
  const at::Tensor from = to_compute_device(at::ones({size}));
  const at::Tensor to = at::empty_like(from);
  double best = 0;
  for (int repeat = 0; repeat < 6; ++repeat) {
    synchronize_compute_device();
    const auto begin = Clock::now();
    parallel_chunks(size, size / workers, [&](std::int64_t first, std::int64_t end) {
      to.narrow(0, first, end - first).copy_(from.narrow(0, first, end - first));
    });
    synchronize_compute_device();
    best = std::max(best, 8.0 * static_cast<double>(size) / since(begin) / 1e9);
  }
  set_thread_policy(before);
  return best;
}

double sit_forward_gflop(const VelocityModel& model) {
  const SitConfig c = sit_config_from_args(model.spec().args);
  const double w = static_cast<double>(c.hidden_size);
  const double n = static_cast<double>(c.tokens());
  const double block = n * (4 * w * w + 2 * w * w * c.mlp_ratio) + 2 * n * n * w + 6 * w * w;
  const double ends =
      n * w *
          static_cast<double>(c.patch_size * c.patch_size * (c.in_channels + c.out_channels())) +
      2 * w * w + 256 * w + w * w;
  return 2 * (static_cast<double>(c.depth) * block + ends) / 1e9;
}

namespace {

// Every weight is drawn, so that no layer is trivially zero.
std::shared_ptr<const VelocityModel> random_model(const ModelSpec& spec, ModelRuntime runtime) {
  const auto created = create_velocity_model(spec, 1, runtime);
  ParameterSet weights;
  std::uint32_t key = 0;
  for (const auto& [name, tensor] : created->parameters()) {
    weights.add(name, created->is_buffer(name)
                          ? tensor
                          : to_compute_device(RandomStreams(1).normal(Purpose::kInit, 5, ++key, 0,
                                                                      1, tensor.sizes())[0] *
                                              0.03));
  }
  return created->rebind(weights, {});
}

struct Timing {
  std::vector<double> seconds;  // sorted
  double cpu_seconds =
      std::numeric_limits<double>::infinity();  // of the process, all threads: least of the
                                                // repetitions; other programs disturb it less
  double peak = 0;  // GFLOP/s of matrix products: best between the repetitions, on a GPU after them
  double memory = 0;        // peak bytes, of the device if there is one
  Allocations allocations;  // of one repetition, the last, on the CPU

  void finish(const ModelRuntime& runtime) {
    std::sort(seconds.begin(), seconds.end());
    memory = compute_device().is_cpu() ? peak_memory_bytes() : device_peak_bytes();
    if (!compute_device().is_cpu()) products(runtime);
  }
  void products(const ModelRuntime& runtime) {
    peak = std::max(peak, gemm_peak(thread_policy().workers * thread_policy().intra_op,
                                    runtime.precision == MatmulPrecision::kBf16));
  }
};

// The first call warms up; on a GPU two do: calls are recorded when they come again.
Timing measure(std::int64_t repeats, const ModelRuntime& runtime,
               const std::function<void(std::int64_t)>& work) {
  Timing out;
  count_allocations();
  const bool cpu = compute_device().is_cpu();
  for (std::int64_t repeat = cpu ? 0 : -1; repeat <= repeats; ++repeat) {
    const Allocations before = allocations_so_far();
    const auto begin = Clock::now();
    const std::clock_t cpu_begin = std::clock();
    work(std::max<std::int64_t>(0, repeat));
    synchronize_compute_device();
    if (repeat > 0) out.seconds.push_back(since(begin));
    if (repeat > 0) {
      out.cpu_seconds =
          std::min(out.cpu_seconds, static_cast<double>(std::clock() - cpu_begin) / CLOCKS_PER_SEC);
    }
    const Allocations now = allocations_so_far();
    out.allocations = {now.count - before.count, now.bytes - before.bytes};
    if (cpu) out.products(runtime);
  }
  out.finish(runtime);
  return out;
}

void add_figures(nlohmann::ordered_json& out, const Timing& timing, const ModelRuntime& runtime,
                 const VelocityModel& model, double forwards_per_sample, std::int64_t batch) {
  const double rate = forwards_per_sample * static_cast<double>(batch) * sit_forward_gflop(model) /
                      timing.seconds.front();
  out.update({{"device", compute_device().str()},
              {"precision", runtime.precision == MatmulPrecision::kBf16 ? "bf16" : "fp32"},
              {"kernels", kernels_name(runtime)},
              {"workers", thread_policy().workers},
              {"threads_per_worker", thread_policy().intra_op},
              {"seconds_min", timing.seconds.front()},
              {"seconds_median", timing.seconds[timing.seconds.size() / 2]},
              {"repeats", timing.seconds.size()},
              {"cpu_seconds_min", timing.cpu_seconds},
              {"network_evaluations_per_sample", forwards_per_sample},
              {"forward_gflop_per_sample", sit_forward_gflop(model)},
              {"gflops", rate},
              {"gemm_peak_gflops", timing.peak},
              {"fraction_of_gemm_peak", rate / timing.peak},
              {"peak_memory_mb", timing.memory / 1e6},
              {"allocations", timing.allocations.count},
              {"allocated_mb", timing.allocations.bytes / 1e6}});
}

// A network with inputs for it; every kind of work runs over all rows in pieces.
class NetworkWork {
 public:
  explicit NetworkWork(const NetworkBenchOptions& o)
      : model(random_model(o.model, o.runtime)), options_(o) {
    x_ = streams_.normal(Purpose::kProbe, 0, 0, 0, o.batch, model->sample_shape());
    cotangent_ = streams_.normal(Purpose::kProbe, 1, 0, 0, o.batch, model->sample_shape());
    t_ = streams_.uniform(Purpose::kTime, 0, 0, o.batch);
    labels_ = at::remainder(at::arange(o.batch), std::max<std::int64_t>(1, model->classes()));
  }

  void forward() const {
    parallel_chunks(
        options_.batch, options_.micro_batch, [&](std::int64_t begin, std::int64_t end) {
          const at::NoGradGuard no_grad;
          model->velocity(x_.narrow(0, begin, end - begin), t_.narrow(0, begin, end - begin),
                          condition(begin, end - begin));
        });
  }

  void vjp() const {
    parallel_chunks(
        options_.batch, options_.micro_batch, [&](std::int64_t begin, std::int64_t end) {
          model->vjp(x_.narrow(0, begin, end - begin), t_.narrow(0, begin, end - begin),
                     condition(begin, end - begin), cotangent_.narrow(0, begin, end - begin));
        });
  }

  void sample() const {
    SamplerConfig sampler;
    sampler.name = "ode-euler";
    sampler.steps = options_.steps;
    DrawOptions draws;
    draws.n = options_.batch;
    draws.chunk = options_.micro_batch;
    draw(
        *model, sampler, *path_, model->sample_shape(), streams_,
        [&](std::int64_t first, std::int64_t n) { return labels_.narrow(0, first, n); }, draws);
  }

  // One optimiser step on the flow matching loss.
  void train(std::int64_t step) {
    const std::int64_t batch = options_.batch;
    std::vector<std::vector<at::Tensor>> gradients(
        static_cast<std::size_t>((batch + options_.micro_batch - 1) / options_.micro_batch));
    const at::AutoGradMode grad(true);
    parallel_chunks(batch, options_.micro_batch, [&](std::int64_t begin, std::int64_t end) {
      const std::int64_t n = end - begin;
      const at::Tensor loss =
          flow_matching_losses(*trained_, *path_, {}, cotangent_.narrow(0, begin, n),
                               x_.narrow(0, begin, n), t_.narrow(0, begin, n), condition(begin, n))
              .sum() /
          static_cast<double>(batch);
      gradients[static_cast<std::size_t>(begin / options_.micro_batch)] =
          torch::autograd::grad({loss}, weights_.tensors());
    });
    for (std::size_t i = 1; i < gradients.size(); ++i) {
      at::_foreach_add_(gradients[0], gradients[i]);
    }
    optimizer_->step(gradients[0], 1e-4);
    average_->update(step);
  }

  void prepare_training() {
    const ParameterSet all = clone(model->parameters(), true);
    for (const auto& [name, tensor] : all) {
      if (!model->is_buffer(name)) weights_.add(name, tensor);
    }
    trained_ = model->rebind(all, {});
    optimizer_ = std::make_unique<AdamW>(OptimizerConfig{}, weights_);
    average_ = std::make_unique<WeightAverage>(weights_, 0.9999);
  }

  const std::shared_ptr<const VelocityModel> model;

 private:
  Condition condition(std::int64_t begin, std::int64_t n) const {
    return Condition{model->classes() > 0 ? labels_.narrow(0, begin, n) : at::Tensor()};
  }

  const NetworkBenchOptions& options_;
  RandomStreams streams_{1};
  std::shared_ptr<const Path> path_ = make_path("linear");
  at::Tensor x_, cotangent_, t_, labels_;
  std::unique_ptr<VelocityModel> trained_;
  ParameterSet weights_;
  std::unique_ptr<AdamW> optimizer_;
  std::unique_ptr<WeightAverage> average_;
};

}  // namespace

nlohmann::ordered_json bench_network(const std::string& what, const NetworkBenchOptions& o) {
  NetworkWork network(o);
  std::function<void(std::int64_t)> work;
  double cost = 1;  // of one call, in forward passes
  if (what == "forward") {
    work = [&](std::int64_t) { network.forward(); };
  } else if (what == "vjp") {
    cost = 2;
    work = [&](std::int64_t) { network.vjp(); };
  } else if (what == "sample") {
    cost = static_cast<double>(o.steps);
    work = [&](std::int64_t) { network.sample(); };
  } else if (what == "train-step") {
    cost = 3;
    network.prepare_training();
    work = [&](std::int64_t repeat) { network.train(repeat); };
  } else {
    fail(ErrorKind::kUsage, cat("nothing called '", what, "' is measured"));
  }
  const Timing timing = measure(o.repeats, o.runtime, work);
  nlohmann::ordered_json out{{"bench", what},
                             {"batch", o.batch},
                             {"micro_batch", o.micro_batch},
                             {"model_args", o.model.args}};
  add_figures(out, timing, o.runtime, *network.model, cost, o.batch);
  return out;
}

nlohmann::ordered_json bench_pretraining(const NetworkBenchOptions& o) {
  auto created = random_model(o.model, o.runtime);
  std::unique_ptr<VelocityModel> model = created->rebind(clone(created->parameters(), false), {});
  const std::int64_t images = 4 * o.batch;
  const std::int64_t classes = std::max<std::int64_t>(1, model->classes());
  ImageDataset data;
  data.mean = RandomStreams(1).normal(Purpose::kProbe, 2, 0, 0, images, model->sample_shape());
  data.labels = at::remainder(at::arange(images), classes);
  data.class_names.resize(static_cast<std::size_t>(classes));
  FlowMatchingOptions options;
  options.batch = o.batch;
  options.micro_batch = o.micro_batch;
  FlowMatchingObjective objective(std::move(model), make_path("linear"), std::move(data), options,
                                  1);
  const ScratchFolder folder("tiltflow-bench");
  Run run(folder.path() / "run", "", false);
  TrainConfig config;
  config.steps = o.repeats + 1;
  config.checkpoint_every = config.steps + 1;
  Timing timing;
  count_allocations();
  Allocations before;
  auto begin = Clock::now();
  std::clock_t cpu_begin = std::clock();
  TrainHooks hooks;
  hooks.label = "bench";
  hooks.lasting = false;
  hooks.after_step = [&](std::int64_t step, const ParameterSet&) {
    synchronize_compute_device();
    if (step > 1) {
      timing.seconds.push_back(since(begin));
      timing.cpu_seconds = std::min(timing.cpu_seconds,
                                    static_cast<double>(std::clock() - cpu_begin) / CLOCKS_PER_SEC);
    }
    const Allocations now = allocations_so_far();
    timing.allocations = {now.count - before.count, now.bytes - before.bytes};
    if (compute_device().is_cpu()) timing.products(o.runtime);
    before = allocations_so_far();
    begin = Clock::now();
    cpu_begin = std::clock();
  };
  train(config, objective, run, hooks);
  timing.finish(o.runtime);
  nlohmann::ordered_json out{{"bench", "pretrain"},
                             {"batch", o.batch},
                             {"micro_batch", o.micro_batch},
                             {"model_args", o.model.args}};
  add_figures(out, timing, o.runtime, objective.model(), 3, o.batch);
  return out;
}

namespace {

// A small reward with a gradient, whatever the model.
StateReward quadratic_reward() {
  RewardTerm term;
  term.name = "quadratic";
  term.center = {0.5};
  term.scale = 0.1;
  return StateReward(make_weighted_sum({term}), pixel_decoder());
}

AdjointMatchingConfig benched_method(const AmBenchOptions& o) {
  AdjointMatchingConfig config = adjoint_matching_preset("exact", o.steps);
  config.loss_steps = o.loss_steps;
  config.keep_graphs = o.keep_graphs;
  config.adjoint_stride = o.adjoint_stride;
  return config;
}

// Gradients of one batch, summed over its pieces.
std::vector<at::Tensor> batch_gradients(AdjointMatching& method, const FinetuneContext& context,
                                        const std::vector<at::Tensor>& weights,
                                        const AmBenchOptions& o, std::int64_t step) {
  const at::AutoGradMode grad(true);
  std::vector<std::vector<at::Tensor>> gradients(
      static_cast<std::size_t>((o.batch + o.micro_batch - 1) / o.micro_batch));
  parallel_chunks(o.batch, o.micro_batch, [&](std::int64_t first, std::int64_t end) {
    const LossReport report =
        method.loss(context, method.collect(context, step, first, end - first, false), o.batch);
    std::vector<at::Tensor> found =
        torch::autograd::grad({report.loss}, weights, {}, false, false, true);
    for (std::size_t i = 0; i < found.size(); ++i) {
      if (!found[i].defined()) found[i] = at::zeros_like(weights[i]);
    }
    gradients[static_cast<std::size_t>(first / o.micro_batch)] = std::move(found);
  });
  for (std::size_t i = 1; i < gradients.size(); ++i) {
    at::_foreach_add_(gradients[0], gradients[i]);
  }
  return std::move(gradients[0]);
}

}  // namespace

nlohmann::ordered_json bench_adjoint_matching(const AmBenchOptions& o) {
  const auto model = random_model(o.model, o.runtime);
  PolicyConfig policy_config;
  policy_config.kind = o.policy;
  Policy policy = make_policy({model, make_path("linear"), "velocity"}, policy_config, 1);
  const auto base = std::make_shared<CountingField>(policy.base);
  const auto tuned = std::make_shared<CountingField>(policy.tuned);
  policy.base = base;
  policy.tuned = tuned;
  const StateReward reward = quadratic_reward();
  const auto path = make_path("linear");
  SamplerConfig sampler;
  sampler.steps = o.steps;
  const TransitionTable table = table_of(sampler, *path);
  AdjointMatching method(benched_method(o));
  const RandomStreams streams(1);
  const LabelSource labels = no_labels();
  const FinetuneContext context{
      policy, reward, *path, table, streams, labels, model->sample_shape()};

  AdamW optimizer({}, policy.trainable);
  const Timing timing = measure(o.repeats, o.runtime, [&](std::int64_t repeat) {
    base->reset();
    tuned->reset();
    method.begin_step(context, repeat, 0);
    optimizer.step(batch_gradients(method, context, policy.trainable.tensors(), o, repeat), 1e-6);
  });
  const double per_sample =
      static_cast<double>(base->count() + tuned->count()) / static_cast<double>(o.batch) +
      static_cast<double>(o.loss_steps * policy.backward_cost);
  nlohmann::ordered_json out{{"bench", "am"},
                             {"policy", o.policy},
                             {"batch", o.batch},
                             {"micro_batch", o.micro_batch},
                             {"steps", o.steps},
                             {"loss_steps", o.loss_steps},
                             {"keep_graphs", o.keep_graphs},
                             {"adjoint_stride", o.adjoint_stride},
                             {"model_args", o.model.args}};
  add_figures(out, timing, o.runtime, *model, per_sample, o.batch);
  return out;
}

}  // namespace tiltflow
