// tiltflow likelihood: log-likelihood of images or samples under a model's probability-flow ODE.
#include <algorithm>
#include <cmath>
#include <iostream>
#include <mutex>
#include <nlohmann/json.hpp>
#include <numbers>

#include "options.h"
#include "tiltflow/base/error.h"
#include "tiltflow/base/progress.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/dataset.h"
#include "tiltflow/io/safetensors.h"
#include "tiltflow/sampler/likelihood.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/tensor/parallel.h"
#include "tiltflow/tensor/statistics.h"
#include "verbs.h"

namespace tiltflow::app {
namespace {

struct LikelihoodOptions {
  ModelOptions model;
  SamplerConfig sampler;
  ComputeConfig compute;
  DatasetConfig data;
  std::string split = "test";
  std::string input;
  std::string out;
  std::int64_t n = 64;
  std::int64_t seed = 0;
  std::int64_t probes = 1;
  std::int64_t chunk = 32;
  bool exact = false;
  bool unconditional = false;
  bool json = false;
};

struct Points {
  at::Tensor x, labels;
  bool bytes = false;  // dequantised 8-bit images: bits per dimension refer to the 256 levels
};

Points read_points(const LikelihoodOptions& o, const VelocityModel& model,
                   const RandomStreams& streams) {
  Points out;
  if (o.input.empty()) {
    const ImageDataset data = read_dataset(o.data, o.split);
    const std::int64_t n = std::min(o.n, data.size());
    const at::Tensor levels = data.pictures(at::arange(n)).to(at::kFloat);
    out.x = (levels + streams.uniform(Purpose::kAugment, 0, 0, n, levels.sizes().slice(1))) / 128 -
            1;  // uniform dequantisation to [-1, 1)
    out.labels = data.labels.narrow(0, 0, n);
    out.bytes = true;
  } else {
    const ParameterSet t = read_safetensors(o.input).tensors;
    if (!t.contains("samples")) {
      fail(ErrorKind::kBadFile, cat(o.input, ": no tensor 'samples'"),
           "a file of `tiltflow sample`");
    }
    const std::int64_t n = std::min(o.n, t.at("samples").size(0));
    out.x = t.at("samples").narrow(0, 0, n).to(at::kFloat);
    if (t.contains("labels")) out.labels = t.at("labels").narrow(0, 0, n).to(at::kLong);
  }
  if (out.x.sizes().slice(1) != at::IntArrayRef(model.sample_shape())) {
    fail(ErrorKind::kBadFile, cat("the data are ", shape_text(out.x.sizes().slice(1)),
                                  ", the model makes ", shape_text(model.sample_shape())));
  }
  if (o.unconditional || model.classes() == 0) out.labels = at::Tensor();
  if (out.labels.defined() && (out.labels.min().item<std::int64_t>() < 0 ||
                               out.labels.max().item<std::int64_t>() > model.classes())) {
    fail(ErrorKind::kBadFile, cat("the data have labels outside 0..", model.classes()));
  }
  return out;
}

// Log-likelihoods [N] in nats (double) and latents of all points, in chunks on all workers.
Likelihood integrate(const LikelihoodOptions& o, const FlowModel& flow, const Points& points,
                     const RandomStreams& streams) {
  std::vector<double> grid = grid_of(o.sampler, *flow.path);
  std::reverse(grid.begin(), grid.end());
  const OdeOptions ode{parse_ode_method(o.sampler.name.substr(4)), o.sampler.rtol, o.sampler.atol};
  const std::int64_t n = points.x.size(0);
  Likelihood out;
  out.log_prob = at::empty({n}, at::kDouble);
  out.latent = at::empty_like(points.x);
  Progress progress("likelihood", n);
  std::mutex mutex;
  std::int64_t done = 0;
  parallel_chunks(n, o.chunk, [&](std::int64_t begin, std::int64_t end) {
    const DivergenceRule rule = o.exact
                                    ? exact_divergence()
                                    : hutchinson(rademacher(streams, o.probes, begin, end - begin,
                                                            flow.model->sample_shape()));
    const Condition condition{points.labels.defined() ? points.labels.narrow(0, begin, end - begin)
                                                      : at::Tensor()};
    const Likelihood found = log_likelihood(*flow.model, points.x.narrow(0, begin, end - begin),
                                            grid, condition, rule, ode);
    const std::lock_guard lock(mutex);
    out.log_prob.narrow(0, begin, end - begin).copy_(found.log_prob);
    out.latent.narrow(0, begin, end - begin).copy_(found.latent);
    out.evaluations = std::max(out.evaluations, found.evaluations);
    progress.update(done += end - begin);
  });
  return out;
}

int likelihood(LikelihoodOptions o) {
  if (o.data.path.empty() == o.input.empty()) {
    fail(ErrorKind::kUsage, "likelihood needs --data FOLDER or --input FILE");
  }
  if (!is_ode(o.sampler)) {
    fail(ErrorKind::kUsage, cat("likelihood integrates an ODE, not ", o.sampler.name),
         "use ode-dopri5, ode-heun or another ode-METHOD");
  }
  const FlowModel flow = o.model.load(apply(o.compute));
  const RandomStreams streams(static_cast<std::uint64_t>(o.seed));
  const Points points = read_points(o, *flow.model, streams);
  o.sampler.prediction = flow.prediction;
  const Likelihood found = integrate(o, flow, points, streams);
  const std::int64_t n = points.x.size(0);
  const std::int64_t d = points.x.numel() / n;
  const Estimate nats = mean_estimate(found.log_prob);
  const double scale = 1 / (static_cast<double>(d) * std::numbers::ln2);
  const nlohmann::ordered_json out{
      {"model", o.model.model.file},
      {"samples", n},
      {"divergence", o.exact ? "exact" : cat("hutchinson, ", o.probes, " probes")},
      {"solver", o.sampler.name},
      {"evaluations", found.evaluations},
      {"log_prob", nats.value},
      {"log_prob_se", nats.se},
      {"bits_per_dim", -nats.value * scale + (points.bytes ? 7 : 0)},
      {"bits_per_dim_se", nats.se * scale}};
  if (!o.out.empty()) {
    ParameterSet tensors;
    tensors.add("log_prob", found.log_prob);
    tensors.add("latent", found.latent);
    write_safetensors(o.out, tensors, {{"model", o.model.model.file}});
  }
  if (!std::isfinite(nats.value)) {
    fail(ErrorKind::kNonFinite, "the log-likelihood is not finite",
         "use more steps or tighter tolerances");
  }
  std::cout << out.dump(o.json ? -1 : 1) << std::endl;
  return 0;
}

}  // namespace

void add_likelihood(CLI::App& program, Action& action) {
  auto* verb = program.add_subcommand(
      "likelihood",
      "log-likelihood of data under the probability-flow ODE, in nats and bits per dimension");
  auto o = std::make_shared<LikelihoodOptions>();
  o->sampler.name = "ode-dopri5";
  add_model_options(*verb, o->model)->required();
  add_data_options(*verb, o->data,
                   "folder of 8-bit images (dequantised; bits refer to 256 levels)");
  verb->add_option("--split", o->split, "of --data: train or test")
      ->check(CLI::IsMember({"train", "test"}))
      ->capture_default_str();
  verb->add_option(
      "--input", o->input,
      "samples.safetensors instead: tensors samples and perhaps labels, in the model's space");
  verb->add_option("--n", o->n, "how many")
      ->check(CLI::Range(1, 100'000'000))
      ->capture_default_str();
  verb->add_option("--probes", o->probes, "random signs per sample for Hutchinson's trace estimate")
      ->check(CLI::Range(1, 10000))
      ->capture_default_str();
  verb->add_flag("--exact", o->exact, "the exact trace: one vector-Jacobian product per dimension");
  verb->add_flag("--unconditional", o->unconditional, "ignore labels");
  add_sampler_options(*verb, o->sampler, /*ode_only=*/true);
  add_compute_options(*verb, o->compute);
  verb->add_option("--chunk", o->chunk, "samples per piece of work")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  verb->add_option("--seed", o->seed, "of probes and dequantisation")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  verb->add_option("--out", o->out,
                   "write log_prob and latents of every sample to this safetensors file");
  verb->add_flag("--json", o->json, "one JSON object on one line");
  verb->footer(
      "Example:\n  tiltflow likelihood --model assets/mnist-sit.safetensors --data data/mnist --n "
      "100");
  verb->callback([=, &action] { action = [o] { return likelihood(*o); }; });
}

}  // namespace tiltflow::app
