// tiltflow sample: draws samples of a model to PNG files, a grid and one archive; in parts,
// resumable, sharded.
#include "options.h"
#include "tiltflow/base/count.h"
#include "tiltflow/base/error.h"
#include "tiltflow/base/log.h"
#include "tiltflow/base/progress.h"
#include "tiltflow/base/signals.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/eval/generate.h"
#include "tiltflow/models/precision_choice.h"
#include "tiltflow/policy/lora.h"
#include "tiltflow/reward/state_reward.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/tensor/parallel.h"
#include "tiltflow/tensor/process_group.h"
#include "verbs.h"

namespace tiltflow::app {
namespace {

struct SampleOptions {
  ModelOptions model;
  SamplerConfig sampler;
  Guidance guidance;
  ComputeConfig compute;
  AutoencoderConfig decoder;
  GenerateOptions generate;
  std::string out = "samples";
  std::string labels;
  std::string lora;
  std::string shard;
  std::int64_t seed = 0;
  double strength = 1;
  bool no_png = false;
};

std::pair<std::int64_t, std::int64_t> parse_shard(const std::string& text) {
  const std::vector<std::string> part = split(text, '/');
  char* end = nullptr;
  if (part.size() == 2 && !part[0].empty() && !part[1].empty()) {
    const std::int64_t shard = std::strtoll(part[0].c_str(), &end, 10);
    const bool first_ok = !*end;
    const std::int64_t shards = std::strtoll(part[1].c_str(), &end, 10);
    if (first_ok && !*end && shards >= 1 && shard >= 0 && shard < shards) return {shard, shards};
  }
  fail(ErrorKind::kUsage, cat("--shard ", text, ": expected I/N with I from 0 to N - 1"));
}

std::vector<InputPath> inputs_of(const SampleOptions& o) {
  std::vector<InputPath> out{{"model", o.model.model.file, PathKind::kWeights}};
  if (!o.lora.empty()) out.push_back({"lora", o.lora, PathKind::kWeights});
  if (!o.decoder.file.empty()) out.push_back({"decoder", o.decoder.file, PathKind::kWeights});
  if (starts_with(o.labels, "@")) out.push_back({"labels", o.labels.substr(1), PathKind::kAll});
  return out;
}

// Every flag that changes samples: parts of different requests must not mix.
std::map<std::string, std::string> request_of(const SampleOptions& o, const FlowModel& flow,
                                              const ModelRuntime& runtime) {
  const SamplerConfig& s = o.sampler;
  std::map<std::string, std::string> request{{"model", o.model.model.file},
                                             {"weights", o.model.model.weights},
                                             {"path", flow.path->name()},
                                             {"prediction", flow.prediction},
                                             {"sampler", s.name},
                                             {"steps", std::to_string(s.steps)},
                                             {"grid", s.grid},
                                             {"seed", std::to_string(o.seed)},
                                             {"labels", o.labels},
                                             {"guidance", compact(o.guidance.scale)}};
  request["sampler_details"] =
      cat("shift ", s.shift, " eta ", s.parameter, " rtol ", s.rtol, " atol ", s.atol, " epsilon ",
          s.epsilon, " diffusion ", s.sde.form, " ", s.sde.norm, " last step ", s.sde.last_step,
          " ", s.sde.last_step_size);
  request["guidance_details"] =
      cat("channels ", o.guidance.channels, " from ", o.guidance.begin, " to ", o.guidance.end);
  request["precision"] = precision_name(runtime);
  request["model_args"] = join(o.model.args, " ");
  if (!o.decoder.file.empty()) request["decoder"] = o.decoder.file;
  if (!o.lora.empty()) {
    request["lora"] = o.lora;
    request["lora_strength"] = compact(o.strength);
  }
  return request;
}

// Which of the parts this process draws; no exchange is needed.
void choose_shard(const std::string& shard, GenerateOptions& options) {
  const WorldInfo world = world_from_environment();
  options.shard = world.rank;
  options.shards = world.size;
  if (!shard.empty()) std::tie(options.shard, options.shards) = parse_shard(shard);
  if (options.shards > 1 && options.overwrite) {
    fail(ErrorKind::kUsage, "--overwrite: one shard would remove what another draws",
         "remove the folder first, or choose another --out");
  }
}

void announce_samples(const SampleOptions& o, const GenerateResult& result) {
  if (is_ode(o.sampler) && result.drawn > 0) {
    log_info(cat(o.sampler.name, ": ", result.evaluations, " evaluations a sample, ",
                 counted(result.accepted, "step"),
                 result.rejected ? cat(", ", result.rejected, " rejected") : ""));
  }
  if (result.kept > 0) {
    log_info(
        cat(counted(result.kept, "sample"), result.kept == 1 ? " was" : " were", " there already"));
  }
  log_info(result.complete ? cat("wrote ", counted(o.generate.n, "sample"), " to ", o.out)
                           : cat("wrote ", counted(result.drawn, "sample"), " to ", o.out,
                                 "; other shards are not ready"));
}

int sample_to_folder(SampleOptions o) {
  const int local = world_from_environment().local_size;
  if (o.compute.workers == 0 && local > 1) {
    o.compute.workers = std::max(1, hardware_cores() / local);
  }
  const ModelRuntime runtime = apply(o.compute);
  FlowModel flow = o.model.load(runtime);
  if (!o.lora.empty()) {
    flow.model = flow.model->rebind(
        merge_adapters(flow.model->parameters(), read_adapters(o.lora, o.strength)), {});
  }
  o.sampler.prediction = flow.prediction;
  const RandomStreams streams(static_cast<std::uint64_t>(o.seed));
  if (o.guidance.active() && o.labels.empty()) {
    fail(ErrorKind::kUsage, "guidance needs labels", "add --labels, or leave --guidance at 1");
  }
  const auto field = guided(flow.model, o.guidance, flow.model->classes());
  const LabelSource labels = label_source(o.labels, flow.model->classes(), streams);
  GenerateOptions options = o.generate;
  choose_shard(o.shard, options);
  options.out = o.out;
  options.png = !o.no_png;
  if (o.labels == "all") options.columns = std::min<std::int64_t>(16, flow.model->classes());
  options.request = request_of(o, flow, runtime);
  options.inputs = fingerprints_of(inputs_of(o));
  Progress progress("sample", options.shards == 1
                                  ? options.n
                                  : (options.n + options.shards - 1) / options.shards);
  options.progress = [&](std::int64_t done) { progress.update(done); };
  const auto autoencoder = o.decoder.file.empty() ? nullptr : load_autoencoder(o.decoder);
  const StopKeeper keeper("finished parts are kept: continue with --resume");
  const GenerateResult result = generate(*field, o.sampler, *flow.path, flow.model->sample_shape(),
                                         streams, labels, decoder_of(flow, autoencoder), options);
  announce_samples(o, result);
  return 0;
}

}  // namespace

void add_sample(CLI::App& program, Action& action) {
  auto* verb = program.add_subcommand("sample", "draw samples of a model");
  auto o = std::make_shared<SampleOptions>();
  o->sampler.name = "ode-heun";
  GenerateOptions& g = o->generate;
  add_model_options(*verb, o->model)->required();
  verb->add_option("--out", o->out, "folder")->capture_default_str();
  verb->add_option("--n", g.n, "number of samples")
      ->check(CLI::Range(1, 100'000'000))
      ->capture_default_str();
  verb->add_option("--seed", o->seed,
                   "seed; sample i is the same whatever --n, --chunk, --part and --shard")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  verb->add_option("--first", g.first, "index of the first sample")
      ->check(CLI::Range(0, 2'000'000'000))
      ->capture_default_str();
  add_sampler_options(*verb, o->sampler);
  verb->add_option("--label,--labels", o->labels,
                   "class number, list 1,5,7, file @FILE, weights w:1,0,2, all (cycling) or "
                   "uniform; unconditional when left out");
  add_guidance_options(*verb, o->guidance);
  verb->add_option("--decoder", o->decoder.file,
                   "autoencoder of a latent model (folder or file in the names of diffusers)");
  verb->add_option("--decoder-tile", o->decoder.tile,
                   "decode larger latents in overlapping tiles of this side; 0 = never")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  verb->add_option("--lora", o->lora,
                   "adapter folder of a lora run or of PEFT, applied to --model");
  verb->add_option("--lora-strength", o->strength, "0 = base, 1 = as trained")
      ->capture_default_str();
  add_compute_options(*verb, o->compute);
  verb->add_option("--chunk", g.chunk, "samples per piece of work")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  verb->add_option("--pack", g.pack,
                   "one file of all samples: safetensors (as drawn), npz (uint8 [N, H, W, C] as "
                   "arr_0, for evaluation scripts) or none; PNG files leave out the noise of a "
                   "last step, see docs/mathematics.md")
      ->check(CLI::IsMember({"safetensors", "npz", "none"}))
      ->capture_default_str();
  verb->add_flag("--keep-noise", g.keep_noise,
                 "store the initial noise too, as tensor noise (safetensors only)");
  verb->add_flag("--no-png", o->no_png, "no PNG file for every sample");
  verb->add_option("--part", g.part, "samples per part; an interruption loses at most one")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  auto* resume = verb->add_flag("--resume", g.resume, "continue an interrupted call");
  verb->add_flag("--overwrite", g.overwrite, "remove the samples that the folder holds")
      ->excludes(resume);
  verb->add_option("--shard", o->shard,
                   "I/N: this process draws every N-th part; the last one packs")
      ->type_name("I/N");
  verb->footer(
      "Example:\n  tiltflow sample --model assets/mnist-sit.safetensors --labels all --n 80 --out "
      "digits\n  tiltflow sample --model assets/mnist-sit.safetensors --labels uniform --n 50000 "
      "--pack npz --no-png --resume --out digits50k");
  verb->callback([=, &action] { action = [o] { return sample_to_folder(*o); }; });
}

}  // namespace tiltflow::app
