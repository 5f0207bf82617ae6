#include "options.h"

#include <algorithm>

#include "tiltflow/base/error.h"
#include "tiltflow/base/log.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/flow/prediction.h"
#include "tiltflow/flow/time_grid.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/tensor/process_group.h"

namespace tiltflow::app {

void add_set_options(CLI::App& verb, SetOptions& options) {
  verb.add_option("--set", options.set,
                  "override a key, e.g. --set train.steps=10 or reward[0].scale=5 (repeatable)")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);
  verb.add_option("--unset", options.unset,
                  "return a key or a section to its default, before any --set (repeatable)")
      ->type_name("KEY")
      ->allow_extra_args(false);
}

void add_config_options(CLI::App& verb, ConfigOptions& options) {
  verb.add_option("config", options.file, "TOML file; shipped ones are in recipes/")->required();
  add_set_options(verb, options);
  verb.add_option("--out", options.out, "run directory (default: runs/<name of the config file>)");
  auto* resume = verb.add_flag("--resume", options.resume,
                               "continue the run in the directory if there is one");
  verb.add_flag("--accept-inputs", options.accept_inputs,
                "continue although files that the run reads have changed, and record them")
      ->needs(resume);
  verb.add_flag("--dry-run", options.dry_run, "check everything, print the plan, write nothing");
}

RunStart ConfigOptions::start(const ResolvedConfig& resolved, const FreeKeys& free,
                              std::string (*reread)(const std::filesystem::path&)) const {
  return {resolved.toml, world_rank() == 0 ? read_inputs_of(resolved.inputs, free) : Inputs{},
          resume,        accept_inputs,
          free,          reread};
}

void join_processes() {
  const WorldInfo info = world_from_environment();
  if (info.rank > 0 && log_level() != LogLevel::kDebug) set_log_level(LogLevel::kWarn);
  join_world(info);
  if (info.size > 1) log_info(cat(info.size, " processes"));
}

FlowModel ModelOptions::load(ModelRuntime runtime) const {
  FlowModelConfig config = model;
  config.args = key_values(args);
  return load_flow_model(config, runtime);
}

CLI::Option* add_weights_option(CLI::App& verb, std::string& weights) {
  return verb.add_option(
      "--weights", weights,
      "PyTorch checkpoint: which state dict, e.g. ema or model (default: ema when there is one)");
}

CLI::Option* add_model_arg_option(CLI::App& verb, std::vector<std::string>& args) {
  return verb
      .add_option("--model-arg", args, "constructor argument, e.g. num_heads=6 (repeatable)")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);
}

CLI::Option* add_model_options(CLI::App& verb, ModelOptions& o) {
  auto* model =
      verb.add_option("--model", o.model.file,
                      "velocity model: safetensors, sharded safetensors or a PyTorch checkpoint");
  add_weights_option(verb, o.model.weights)->needs(model);
  verb.add_option("--path", o.model.path, "interpolation path when the file does not say")
      ->check(CLI::IsMember(path_names()))
      ->needs(model);
  verb.add_option("--prediction", o.model.prediction,
                  "what the network answers when the file does not say")
      ->check(CLI::IsMember(predictions()))
      ->needs(model);
  add_model_arg_option(verb, o.args)->needs(model);
  return model;
}

void refuse_other_options(const CLI::App& verb, const std::vector<std::string>& known,
                          const std::string& where) {
  for (const CLI::Option* option : verb.get_options()) {
    const std::string name = option->get_name();
    if (option->count() > 0 && std::find(known.begin(), known.end(), name) == known.end()) {
      fail(ErrorKind::kUsage, cat(name, " has no effect ", where));
    }
  }
}

void add_sampler_options(CLI::App& verb, SamplerConfig& s, bool ode_only) {
  verb.add_option("--sampler", s.name, "see `tiltflow list samplers`")
      ->check(CLI::IsMember(sampler_names()))
      ->capture_default_str();
  verb.add_option("--steps", s.steps, "sampler steps")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  verb.add_option("--grid", s.grid, "time grid")
      ->check(CLI::IsMember({"uniform", "cosine", "shifted"}))
      ->capture_default_str();
  verb.add_option("--shift", s.shift, "of the shifted grid")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  if (!ode_only) {
    verb.add_option("--eta", s.parameter, "ddim: 0 deterministic, 1 ancestral; constant: sigma")
        ->check(CLI::NonNegativeNumber)
        ->capture_default_str();
  }
  verb.add_option("--rtol", s.rtol, "ode-dopri5: relative tolerance")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  verb.add_option("--atol", s.atol, "ode-dopri5: absolute tolerance")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  verb.add_option("--epsilon", s.epsilon, "distance kept from singular ends of time")
      ->check(CLI::Range(1e-6, 0.1))
      ->capture_default_str();
  if (ode_only) return;
  verb.add_option("--diffusion", s.sde.form, "sde-*: diffusion coefficient w(t)")
      ->check(CLI::IsMember(diffusion_forms()))
      ->capture_default_str();
  verb.add_option("--diffusion-norm", s.sde.norm, "sde-*: factor on w")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  verb.add_option("--last-step", s.sde.last_step, "sde-*: none, mean, tweedie or euler")
      ->check(CLI::IsMember({"none", "mean", "tweedie", "euler"}))
      ->capture_default_str();
  verb.add_option("--last-step-size", s.sde.last_step_size, "sde-*: its length")
      ->check(CLI::Range(0.0, 0.5))
      ->capture_default_str();
}

void add_guidance_options(CLI::App& verb, Guidance& g) {
  verb.add_option("--guidance", g.scale, "classifier-free guidance scale; 1 = none")
      ->capture_default_str();
  verb.add_option("--guidance-channels", g.channels,
                  "guide only the first so many channels (SiT's script: 3); 0 = all")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  verb.add_option("--guidance-begin", g.begin, "guidance acts from this time on (0 is noise)")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  verb.add_option("--guidance-end", g.end, "and until this time")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
}

CLI::Option* add_data_options(CLI::App& verb, DatasetConfig& data, const std::string& what) {
  auto* folder = verb.add_option("--data", data.path, what);
  verb.add_option("--format", data.format,
                  "of --data: idx, cifar, folder (one sub-folder a class) or numpy (a file .npz)")
      ->check(CLI::IsMember({"idx", "cifar", "folder", "numpy"}))
      ->needs(folder)
      ->capture_default_str();
  verb.add_option(
          "--size", data.size,
          "crop and resize the pictures to their central square of this size; 0: as they are")
      ->check(CLI::NonNegativeNumber)
      ->needs(folder)
      ->capture_default_str();
  verb.add_option("--channels", data.channels,
                  "grey: every picture to one channel, rgb: to three, auto: three as soon as one "
                  "picture is coloured")
      ->check(CLI::IsMember({"auto", "grey", "rgb"}))
      ->needs(folder)
      ->capture_default_str();
  verb.add_option("--alpha", data.alpha,
                  "transparent pixels: drop (their colour stays, as in torchvision), white or "
                  "black (composed on it), refuse")
      ->check(CLI::IsMember({"drop", "white", "black", "refuse"}))
      ->needs(folder)
      ->capture_default_str();
  verb.add_flag("--skip-bad", data.skip_bad,
                "leave out pictures that cannot be read, and say which")
      ->needs(folder);
  return folder;
}

void add_compute_options(CLI::App& verb, ComputeConfig& c) {
  verb.add_option("--device", c.device,
                  "where networks compute: cpu, cuda, cuda:1 or another device of libtorch")
      ->capture_default_str();
  verb.add_option("--precision", c.precision,
                  "of matrix products: fp32, bf16, or auto (bf16 where this machine gains by it)")
      ->check(CLI::IsMember({"fp32", "bf16", "auto"}))
      ->capture_default_str();
  verb.add_option("--kernels", c.kernels,
                  "how transformer blocks run: fused (each step as it was measured fastest here), "
                  "fixed (by fixed rules) or plain")
      ->check(CLI::IsMember({"fused", "fixed", "plain"}))
      ->capture_default_str();
  verb.add_option("--activation-checkpointing", c.activation_checkpointing,
                  "recompute blocks in the backward pass: less memory, more time (true or false)")
      ->capture_default_str();
  verb.add_option("--graphs", c.graphs,
                  "on CUDA: record network calls as CUDA graphs (true or false)")
      ->capture_default_str();
  verb.add_option("--workers", c.workers, "pieces of work at a time; 0 = one per core")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  verb.add_option("--threads", c.threads,
                  "libtorch threads inside each piece: with few samples, `--workers 1 --threads "
                  "CORES` is faster")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
}

std::map<std::string, std::string> key_values(const std::vector<std::string>& items) {
  std::map<std::string, std::string> out;
  for (const std::string& item : items) {
    const std::size_t equals = item.find('=');
    if (equals == std::string::npos || equals == 0) {
      fail(ErrorKind::kUsage, cat("'", item, "': expected KEY=VALUE"));
    }
    out[item.substr(0, equals)] = item.substr(equals + 1);
  }
  return out;
}

LabelSource label_source(const std::string& text, std::int64_t classes,
                         const RandomStreams& streams) {
  if (text.empty()) return no_labels();
  if (classes == 0) fail(ErrorKind::kUsage, "labels given, but the model is unconditional");
  if (text == "all") {
    return [classes](std::int64_t first, std::int64_t n) {
      return at::remainder(at::arange(first, first + n), classes);
    };
  }
  LabelConfig config;
  try {
    if (text == "uniform") {
      config.kind = "uniform";
    } else if (text[0] == '@') {
      config.kind = "file";
      config.file = text.substr(1);
    } else if (starts_with(text, "w:")) {
      config.kind = "weighted";
      config.weights = parse_numbers(text.substr(2), "label weights");
    } else {
      config.kind = "list";
      config.list = parse_labels(text, "--labels");
    }
    return make_labels(config, classes, streams, 0, 0);
  } catch (const Error& error) {  // a wrong value on the command line is a usage error
    if (error.kind() == ErrorKind::kConfig) fail(ErrorKind::kUsage, error.what(), error.hint());
    throw;
  }
}

}  // namespace tiltflow::app
