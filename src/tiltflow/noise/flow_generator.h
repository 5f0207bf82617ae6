// Any generator a user may have: a one-step network, or a flow model behind a deterministic
// few-step sampler, noise to sample in one differentiable call. Noise has unit variance everywhere;
// what a network wants it scaled to is its generator's business.
#pragma once

#include <memory>

#include "tiltflow/config/fields.h"
#include "tiltflow/flow/discrete_schedule.h"
#include "tiltflow/models/flow_model.h"
#include "tiltflow/models/generator/generator.h"
#include "tiltflow/sampler/ode.h"

namespace tiltflow {

struct GeneratorConfig {
  std::string file, section;                // section: state dict of a PyTorch checkpoint
  std::map<std::string, std::string> args;  // constructor arguments
  std::string path, prediction;             // flow models whose file does not say
  std::string solver = "ode-euler";  // flow models: ode-euler, ode-midpoint, ode-heun or ode-rk4
  std::int64_t steps = 1;            // and its number of steps
  std::string schedule;  // linear, scaled-linear: the network predicts noise at whole times 0..999
                         // (DiT); one step by `one_step`
  std::string one_step = "ddpm";  // euler, ddpm or tcd
};
void bind(Fields& f, GeneratorConfig& c);

// Throws kBadFile for files that are neither, kConfig for solvers that are not deterministic with a
// fixed number of steps.
std::unique_ptr<Generator> open_generator(const GeneratorConfig& config, ModelRuntime runtime = {});

// The same kind of generator from another file; `section` as given (files tiltflow wrote have
// none).
std::unique_ptr<Generator> open_generator_file(GeneratorConfig config,
                                               const std::filesystem::path& file,
                                               const std::string& section = "",
                                               ModelRuntime runtime = {});

std::unique_ptr<Generator> flow_generator(std::shared_ptr<const VelocityModel> model,
                                          std::shared_ptr<const Path> path,
                                          const std::string& prediction, const std::string& solver,
                                          std::int64_t steps);
// One step of a network that predicts noise at the whole times of a discrete schedule.
std::unique_ptr<Generator> noise_prediction_generator(std::shared_ptr<const VelocityModel> network,
                                                      const std::string& schedule,
                                                      const std::string& one_step);
// Saves any kind in its own format.
void save_any_generator(const std::filesystem::path& file, const Generator& generator,
                        const ParameterSet& parameters);

}  // namespace tiltflow
