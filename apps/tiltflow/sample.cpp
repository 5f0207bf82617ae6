// tiltflow sample: draws samples of a model to PNG files, a grid and one safetensors file.
#include <iostream>

#include "tiltflow/base/error.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/log.h"
#include "tiltflow/base/progress.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/image.h"
#include "tiltflow/io/safetensors.h"
#include "tiltflow/models/model_file.h"
#include "tiltflow/models/runtime_config.h"
#include "tiltflow/policy/lora.h"
#include "tiltflow/reward/state_reward.h"
#include "tiltflow/sampler/fields.h"
#include "tiltflow/sampler/sample.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/tensor/precision.h"
#include "verbs.h"

namespace tiltflow::app {
namespace {

struct SampleOptions {
  std::string model, out = "samples", path, label, lora, weights;
  std::vector<std::string> args;
  SamplerConfig sampler;
  ComputeConfig compute;
  std::int64_t n = 64, seed = 0, chunk = 32;
  double guidance = 1, strength = 1;
};

LabelSource label_source(const SampleOptions& o, std::int64_t classes, const RandomStreams& streams) {
  if (o.label.empty()) return no_labels();
  if (classes == 0) fail(ErrorKind::kUsage, "--label given, but the model is unconditional");
  if (o.label == "all") return [classes](std::int64_t first, std::int64_t n) { return at::remainder(at::arange(first, first + n), classes); };
  if (o.label == "uniform") return uniform_labels(streams, 0, classes);
  char* end = nullptr;
  const long label = std::strtol(o.label.c_str(), &end, 10);
  if (*end) fail(ErrorKind::kUsage, cat("--label ", o.label, ": expected a class number, all or uniform"));
  if (label < 0 || label > classes) fail(ErrorKind::kUsage, cat("--label ", label, " is out of range: classes 0..", classes - 1, ", ", classes, " for none"));
  return fixed_label(label);
}

int sample_to_folder(const SampleOptions& o) {
  LoadedModel loaded = load_velocity_model(o.model, key_values(o.args), apply(o.compute), at::kFloat, o.weights);
  std::shared_ptr<const VelocityModel> model = std::move(loaded.model);
  if (!o.lora.empty()) model = model->rebind(merge_adapters(model->parameters(), read_adapters(o.lora, o.strength)), {});
  const auto path = make_path(!o.path.empty() ? o.path : loaded.path_name.empty() ? "linear" : loaded.path_name);
  const RandomStreams streams(static_cast<std::uint64_t>(o.seed));
  std::shared_ptr<const VelocityField> field = model;
  if (o.guidance != 1) field = std::make_shared<GuidedField>(model, o.guidance, model->classes());
  const LabelSource labels = label_source(o, model->classes(), streams);
  make_directories(o.out);
  Progress progress("sample", o.n);
  DrawOptions options;
  options.n = o.n, options.chunk = o.chunk;
  options.progress = [&](std::int64_t done) { progress.update(done); };
  const Draws draws = draw(*field, o.sampler, *path, model->sample_shape(), streams, labels, options);
  const std::filesystem::path folder = o.out;
  ParameterSet tensors;
  tensors.add("samples", draws.x);
  if (draws.labels.defined()) tensors.add("labels", draws.labels);
  write_safetensors(folder / "samples.safetensors", tensors, {{"model", o.model}, {"sampler", o.sampler.name}, {"steps", std::to_string(o.sampler.steps)}, {"seed", std::to_string(o.seed)}});
  if (draws.x.dim() == 4 && (draws.x.size(1) == 1 || draws.x.size(1) == 3)) {
    const at::Tensor images = pixel_decoder()(draws.x).clamp(0, 1);
    for (std::int64_t i = 0; i < images.size(0); ++i) {
      std::string name = std::to_string(i);
      name.insert(0, name.size() < 6 ? 6 - name.size() : 0, '0');
      write_png(folder / (name + ".png"), images[i], {{"Software", "tiltflow"}, {"model", o.model}, {"seed", std::to_string(o.seed)}, {"index", std::to_string(i)}});
    }
    write_png(folder / "grid.png", image_grid(images.narrow(0, 0, std::min<std::int64_t>(64, images.size(0))), o.label == "all" ? static_cast<int>(std::min<std::int64_t>(16, model->classes())) : 8));
  }
  log_info(cat("wrote ", o.n, " samples to ", folder.string(), " (samples.safetensors, PNG files, grid.png)"));
  return 0;
}

}  // namespace

void add_sample(CLI::App& program, Action& action) {
  auto* verb = program.add_subcommand("sample", "draw samples of a model");
  auto o = std::make_shared<SampleOptions>();
  o->sampler.name = "ode-heun";
  verb->add_option("--model", o->model, "velocity model: safetensors, sharded safetensors or a PyTorch checkpoint")->required();
  verb->add_option("--out", o->out, "folder")->capture_default_str();
  verb->add_option("--n", o->n, "number of samples")->check(CLI::Range(1, 100'000'000))->capture_default_str();
  verb->add_option("--seed", o->seed, "seed; sample i is the same whatever --n and --chunk")->check(CLI::NonNegativeNumber)->capture_default_str();
  verb->add_option("--sampler", o->sampler.name, "see `tiltflow list samplers`")->check(CLI::IsMember(sampler_names()))->capture_default_str();
  verb->add_option("--steps", o->sampler.steps, "steps")->check(CLI::Range(1, 100000))->capture_default_str();
  verb->add_option("--diffusion", o->sampler.sde.form, "sde-*: diffusion coefficient w(t)")->check(CLI::IsMember(diffusion_forms()))->capture_default_str();
  verb->add_option("--diffusion-norm", o->sampler.sde.norm, "sde-*: factor on w")->check(CLI::NonNegativeNumber)->capture_default_str();
  verb->add_option("--last-step", o->sampler.sde.last_step, "sde-*: none, mean, tweedie or euler")->check(CLI::IsMember({"none", "mean", "tweedie", "euler"}))->capture_default_str();
  verb->add_option("--last-step-size", o->sampler.sde.last_step_size, "sde-*: its length")->check(CLI::Range(0.0, 0.5))->capture_default_str();
  verb->add_option("--label", o->label, "class number, all (cycling) or uniform; unconditional when left out");
  verb->add_option("--guidance", o->guidance, "classifier-free guidance scale; 1 = none")->capture_default_str();
  verb->add_option("--path", o->path, "interpolation path when the file does not say")->check(CLI::IsMember(path_names()));
  add_weights_option(*verb, o->weights);
  verb->add_option("--model-arg", o->args, "constructor argument, e.g. num_heads=6 (repeatable)")->type_name("KEY=VALUE")->allow_extra_args(false);
  verb->add_option("--lora", o->lora, "adapter file of a lora run, applied to --model");
  verb->add_option("--lora-strength", o->strength, "0 = base, 1 = as trained")->capture_default_str();
  verb->add_option("--precision", o->compute.precision, "fp32 or bf16")->check(CLI::IsMember({"fp32", "bf16"}))->capture_default_str();
  verb->add_option("--workers", o->compute.workers, "pieces of work at a time; 0 = one per core")->check(CLI::NonNegativeNumber)->capture_default_str();
  verb->add_option("--chunk", o->chunk, "samples per piece of work")->check(CLI::PositiveNumber)->capture_default_str();
  verb->footer("Example:\n  tiltflow sample --model assets/mnist-sit.safetensors --label all --n 80 --out digits");
  verb->callback([=, &action] { action = [o] { return sample_to_folder(*o); }; });
}

}  // namespace tiltflow::app
