// Options shared by verbs.
#pragma once

#include <CLI/CLI.hpp>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "tiltflow/config/override.h"
#include "tiltflow/config/resume.h"
#include "tiltflow/io/dataset.h"
#include "tiltflow/models/flow_model.h"
#include "tiltflow/models/runtime_config.h"
#include "tiltflow/sampler/fields.h"
#include "tiltflow/sampler/sample.h"

namespace tiltflow::app {

// --set KEY=VALUE and --unset KEY of every verb that reads a configuration.
struct SetOptions {
  std::vector<std::string> set, unset;
  std::vector<Override> overrides() const { return command_line_overrides(set, unset); }
};
void add_set_options(CLI::App& verb, SetOptions& options);

// Verbs that read a configuration and make a run.
struct ConfigOptions : SetOptions {
  std::string file;
  std::string out;
  bool resume = false;
  bool accept_inputs = false;
  bool dry_run = false;
  // How a run of this configuration begins; only the first process reads the files. `reread`: see
  // RunStart.
  RunStart start(const ResolvedConfig& resolved, const FreeKeys& free,
                 std::string (*reread)(const std::filesystem::path&)) const;
};
void add_config_options(CLI::App& verb, ConfigOptions& options);

// Joins the processes that the environment names; all but the first print warnings and errors only.
void join_processes();

// Verbs that read a velocity model: --model, --weights, --path, --prediction, --model-arg.
struct ModelOptions {
  FlowModelConfig model;
  std::vector<std::string> args;
  FlowModel load(ModelRuntime runtime) const;
};
CLI::Option* add_model_options(CLI::App& verb, ModelOptions& options);  // returns --model
// --weights NAME: which state dict of a PyTorch checkpoint.
CLI::Option* add_weights_option(CLI::App& verb, std::string& weights);
CLI::Option* add_model_arg_option(CLI::App& verb, std::vector<std::string>& args);
// Throws kUsage naming the options of `verb` that were given and are not among `known`; `where`
// says when they would be ignored.
void refuse_other_options(const CLI::App& verb, const std::vector<std::string>& known,
                          const std::string& where);
// --sampler, --steps, --grid, --shift, --rtol, ... and --diffusion, --last-step, ...
void add_sampler_options(CLI::App& verb, SamplerConfig& sampler, bool ode_only = false);
// --guidance, --guidance-channels, --guidance-begin, --guidance-end
void add_guidance_options(CLI::App& verb, Guidance& guidance);
// --data (with the help text `what`), --format, --size
CLI::Option* add_data_options(CLI::App& verb, DatasetConfig& data, const std::string& what);
// --workers, --precision, --kernels
void add_compute_options(CLI::App& verb, ComputeConfig& compute);

// "KEY=VALUE" items as a map; throws kUsage.
std::map<std::string, std::string> key_values(const std::vector<std::string>& items);
// --labels: a class number, "all" (cycling), "uniform", a list "1,5,7", a file of numbers "@FILE",
// or weights "w:.5,.5"; "" = none. Throws kUsage.
LabelSource label_source(const std::string& text, std::int64_t classes,
                         const RandomStreams& streams);

}  // namespace tiltflow::app
