// Drawing many samples: a named sampler (stochastic table, SDE with free diffusion, or ODE) run
// over chunks of keyed samples on all cores.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "tiltflow/config/fields.h"
#include "tiltflow/sampler/labels.h"
#include "tiltflow/sampler/ode.h"
#include "tiltflow/sampler/rollout.h"
#include "tiltflow/sampler/sde.h"

namespace tiltflow {

struct SamplerConfig {
  std::string name = "auto";  // a table of make_table; sde-euler, sde-heun; ode-euler,
                              // ode-midpoint, ode-heun, ode-rk4, ode-dopri5
  std::int64_t steps = 20;
  std::string grid = "uniform";  // uniform, cosine, shifted
  double shift = 1;              // of the shifted grid
  double parameter = 1;          // eta of ddim, sigma of constant
  double rtol = 1e-4;
  double atol = 1e-5;     // ode-dopri5
  SdeOptions sde;         // of sde-euler and sde-heun; the last of the steps is the last step
  double epsilon = 1e-3;  // distance from the ends of time where path, prediction or diffusion are
                          // singular there
  std::string prediction = "velocity";  // what the network behind the field predicts; comes from
                                        // the model, not from a key
};
void bind(Fields& f, SamplerConfig& c);
std::vector<std::string> sampler_names();
bool is_ode(const SamplerConfig& config);
bool is_sde(const SamplerConfig& config);  // free diffusion, not a table
// Times from noise to data. Begins or ends `epsilon` inside [0, 1] where path and prediction need
// it.
std::vector<double> grid_of(const SamplerConfig& config, const Path& path);
TransitionTable table_of(const SamplerConfig& config,
                         const Path& path);  // throws kConfig for sde-* and ode-*

struct DrawOptions {
  std::int64_t n = 64;
  std::int64_t first = 0;
  std::int64_t chunk = 32;
  std::uint32_t step = 0;  // key of the noise
  const VelocityField* reference =
      nullptr;  // with it, cost and log_ratio against this field are measured (stochastic samplers)
  bool keep_noise = false;
  bool keep_prediction = false;  // Draws::prediction, for pictures
  bool shared = false;  // several processes: each draws its pieces, all get everything; all must
                        // call with the same options
  std::function<void(std::int64_t done)> progress;
};

struct Draws {
  at::Tensor x;                  // [n, ...]
  at::Tensor noise;              // [n, ...] x_0, when DrawOptions::keep_noise
  at::Tensor prediction;         // [n, ...] the samples without the noise of their last step, when
                                 // DrawOptions::keep_prediction
  at::Tensor labels;             // [n] or undefined
  at::Tensor cost;               // [n] path KL against `reference`, or undefined
  std::int64_t evaluations = 0;  // ODE: velocity calls per sample (largest over the pieces)
  std::int64_t accepted = 0;
  std::int64_t rejected = 0;  // ODE: steps, likewise
  at::Tensor log_ratio;       // [n] log density of the path under `reference` minus that under the
                              // field; its mean is -cost's
};

// What `Draws::prediction` holds. A sampler whose last step adds noise leaves it in its samples:
// there it is the data prediction E[x_1 | X_{K-1}] of the last network call, so that pictures show
// no speckles. Elsewhere it is the sample. Statistics are never of predictions. Source:
// docs/mathematics.md, "What pictures show".
bool leaves_noise(const SamplerConfig& config, const Path& path);

// Cost: the calls of the sampler; keep_prediction adds one for sde-* without a last step, else
// none.
Draws draw(const VelocityField& field, const SamplerConfig& config, const Path& path,
           at::IntArrayRef shape, const RandomStreams& streams, const LabelSource& labels,
           const DrawOptions& options);

}  // namespace tiltflow
