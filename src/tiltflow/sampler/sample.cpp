#include "tiltflow/sampler/sample.h"

#include <mutex>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/flow/prediction.h"
#include "tiltflow/flow/time_grid.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/tensor/parallel.h"
#include "tiltflow/tensor/process_group.h"

namespace tiltflow {

std::vector<std::string> sampler_names() {
  std::vector<std::string> names = table_names();
  names.insert(names.end(), {"sde-euler", "sde-heun"});
  for (const char* method : {"euler", "midpoint", "heun", "rk4", "dopri5"}) {
    names.push_back(cat("ode-", method));
  }
  return names;
}

void bind(Fields& f, SamplerConfig& c) {
  f.value("name", c.name,
          "auto (memoryless SDE recommended for the path), another table, sde-METHOD or "
          "ode-METHOD; see `tiltflow list samplers`",
          one_of(sampler_names()));
  f.value("steps", c.steps, "steps of the sampler", at_least_integer(1));
  f.value("grid", c.grid, "time grid", one_of({"uniform", "cosine", "shifted"}));
  f.value("shift", c.shift, "of the shifted grid", positive());
  f.value("parameter", c.parameter, "eta of ddim, sigma of constant", at_least(0));
  f.value("diffusion", c.sde.form, "sde-*: diffusion coefficient w(t)", one_of(diffusion_forms()));
  f.value("diffusion_norm", c.sde.norm, "sde-*: factor on w", at_least(0));
  f.value("last_step", c.sde.last_step, "sde-*: none, mean, tweedie or euler",
          one_of({"none", "mean", "tweedie", "euler"}));
  f.value("last_step_size", c.sde.last_step_size, "sde-*: length of the last step",
          between(0, 0.5));
  f.value("epsilon", c.epsilon,
          "distance kept from the ends of time where path, prediction or diffusion are singular",
          between(1e-6, 0.1));
  f.value("rtol", c.rtol, "ode-dopri5: relative tolerance", positive());
  f.value("atol", c.atol, "ode-dopri5: absolute tolerance", positive());
}

bool is_ode(const SamplerConfig& c) { return starts_with(c.name, "ode-"); }
bool is_sde(const SamplerConfig& c) { return starts_with(c.name, "sde-"); }

std::vector<double> grid_of(const SamplerConfig& c, const Path& path) {
  TimeEnds ends = ode_ends(path, c.prediction, c.epsilon);
  if (!is_ode(c)) ends.end = 1;  // a table never looks at its end
  std::vector<double> grid = make_grid(c.grid, static_cast<int>(c.steps), c.shift);
  for (double& t : grid) t = ends.begin + (ends.end - ends.begin) * t;
  return grid;
}

TransitionTable table_of(const SamplerConfig& c, const Path& path) {
  if (is_ode(c) || is_sde(c)) {
    fail(ErrorKind::kConfig,
         cat("sampler ", c.name, is_ode(c) ? " is deterministic" : " has no transition table",
             "; a table is needed here"),
         "use auto, euler, exponential or ancestral");
  }
  return make_table(c.name, path, grid_of(c, path), c.parameter);
}

namespace {

// Fills in the parts of the other processes: a sum in which everybody else has zeros is exact.
void exchange(std::vector<Draws>& parts, const DrawOptions& options, at::IntArrayRef shape,
              const LabelSource& labels, bool costs) {
  std::vector<at::Tensor> sums;
  const at::Tensor counts = at::zeros({static_cast<std::int64_t>(parts.size()), 3}, at::kLong);
  for (std::size_t i = 0; i < parts.size(); ++i) {
    Draws& part = parts[i];
    const std::int64_t begin = options.first + static_cast<std::int64_t>(i) * options.chunk;
    const std::int64_t n = std::min(options.chunk, options.first + options.n - begin);
    const bool mine = part.x.defined();
    if (!mine) {
      std::vector<std::int64_t> sizes = shape.vec();
      sizes.insert(sizes.begin(), n);
      part.x = at::zeros(sizes);
      part.labels = labels(begin, n);
      if (options.keep_noise) part.noise = at::zeros(sizes);
      if (options.keep_prediction) part.prediction = at::zeros(sizes);
      if (costs) {
        part.cost = at::zeros({n});
        part.log_ratio = at::zeros({n});
      }
    }
    const std::int64_t found[] = {part.evaluations, part.accepted, part.rejected};
    for (std::int64_t j = 0; mine && j < 3; ++j) counts[static_cast<std::int64_t>(i)][j] = found[j];
    for (const at::Tensor& x : {part.x, part.noise, part.prediction, part.cost, part.log_ratio}) {
      if (x.defined()) sums.push_back(x);
    }
  }
  all_reduce_sum(sums);
  all_reduce_sum({counts});
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const at::Tensor row = counts[static_cast<std::int64_t>(i)];
    parts[i].evaluations = row[0].item<std::int64_t>();
    parts[i].accepted = row[1].item<std::int64_t>();
    parts[i].rejected = row[2].item<std::int64_t>();
  }
}

// One piece under sde-*. Without a last step of its own the prediction is made before the last
// noise is added.
void draw_sde(const VelocityField& field, const SamplerConfig& config, const Path& path,
              const at::Tensor& x_0, const NoiseSource& noise, const Condition& condition,
              bool keep_prediction, Draws& part) {
  SdeOptions options = config.sde;
  options.method = config.name.substr(4);
  const std::vector<double> times =
      sde_grid(path, config.prediction, options, static_cast<int>(config.steps), config.epsilon);
  if (!keep_prediction || options.last_step != "none" || times.size() < 2) {
    part.x = solve_sde(field, path, x_0, times, condition, noise, options);
    if (keep_prediction) part.prediction = part.x;
    return;
  }
  const std::vector<double> head(times.begin(), times.end() - 1);
  const std::vector<double> tail(times.end() - 2, times.end());
  const at::Tensor before = solve_sde(field, path, x_0, head, condition, noise, options);
  const at::Tensor velocity = field.velocity(before, time_tensor(tail.front(), before), condition);
  part.prediction = data_from_velocity(path.at(tail.front()), before, velocity);
  const int done = static_cast<int>(head.size()) - 1;
  part.x = solve_sde(
      field, path, before, tail, condition, [&](int k) { return noise(k + done); }, options);
}

}  // namespace

bool leaves_noise(const SamplerConfig& config, const Path& path) {
  if (is_ode(config)) return false;
  if (is_sde(config)) return config.sde.last_step == "none";
  return table_of(config, path).steps.back().s > 0;
}

namespace {

// What all pieces of one draw share.
struct Drawing {
  const VelocityField& field;
  const SamplerConfig& config;
  const Path& path;
  at::IntArrayRef shape;
  const RandomStreams& streams;
  const DrawOptions& options;
  std::vector<double> grid;
  TransitionTable table;  // of samplers that have one
  OdeOptions ode;
  bool costs = false;  // path costs against options.reference are asked for

  Draws piece(std::int64_t begin, std::int64_t n, at::Tensor labels) const {
    Draws part;
    part.labels = std::move(labels);
    const Condition condition{part.labels};
    const at::Tensor x_0 = prior_sample(streams, options.step, begin, n, shape);
    if (options.keep_noise) part.noise = x_0;
    if (is_ode(config)) {
      by_ode(x_0, condition, part);
    } else if (is_sde(config)) {
      draw_sde(field, config, path, x_0, keyed_noise(streams, options.step, begin, x_0), condition,
               options.keep_prediction, part);
    } else {
      by_table(x_0, keyed_noise(streams, options.step, begin, x_0), condition, part);
    }
    return part;
  }

 private:
  void by_ode(const at::Tensor& x_0, const Condition& condition, Draws& part) const {
    const OdeResult end = solve_ode(field, x_0, grid, condition, ode);
    if (options.keep_prediction) part.prediction = end.x;
    part.x = end.x;
    part.evaluations = end.evaluations;
    part.accepted = end.accepted;
    part.rejected = end.rejected;
  }

  void by_table(const at::Tensor& x_0, const NoiseSource& noise, const Condition& condition,
                Draws& part) const {
    RolloutOptions keep;
    keep.keep_states = keep.keep_velocities = keep.keep_noises = costs;
    const Trajectory taken = rollout(field, table, x_0, condition, noise, keep);
    part.x = taken.last;
    if (options.keep_prediction) {
      const Transition& last = table.steps.back();
      part.prediction =
          last.s > 0 ? data_from_velocity(path.at(last.t), taken.before_last, taken.last_velocity)
                     : part.x;
    }
    if (costs) add_path_costs(taken, condition, part);
  }

  // Control cost and log density ratio of the path against the reference field.
  void add_path_costs(const Trajectory& taken, const Condition& condition, Draws& part) const {
    const std::int64_t n = taken.last.size(0);
    part.cost = at::zeros({n});
    part.log_ratio = at::zeros({n});
    for (std::size_t k = 0; k < table.steps.size(); ++k) {
      const Transition& step = table.steps[k];
      if (!(step.s > 0)) continue;
      const at::Tensor v = options.reference->velocity(
          taken.states[k], time_tensor(step.t, taken.states[k]), condition);
      part.cost += control_cost(step, taken.velocities[k], v);
      part.log_ratio += path_log_ratio(step, taken.velocities[k], v, taken.noises[k]);
    }
  }
};

// All pieces in their order; evaluations are those of the piece that took most.
Draws joined(const std::vector<Draws>& parts) {
  Draws out;
  std::vector<at::Tensor> x, labels, noise, prediction, cost, log_ratio;
  for (const Draws& part : parts) {
    x.push_back(part.x);
    if (part.noise.defined()) noise.push_back(part.noise);
    if (part.prediction.defined()) prediction.push_back(part.prediction);
    if (part.evaluations > out.evaluations) {
      out.evaluations = part.evaluations;
      out.accepted = part.accepted;
      out.rejected = part.rejected;
    }
    if (part.labels.defined()) labels.push_back(part.labels);
    if (part.cost.defined()) {
      cost.push_back(part.cost);
      log_ratio.push_back(part.log_ratio);
    }
  }
  out.x = at::cat(x);
  if (!labels.empty()) out.labels = at::cat(labels);
  if (!noise.empty()) out.noise = at::cat(noise);
  if (!prediction.empty()) out.prediction = at::cat(prediction);
  if (!cost.empty()) {
    out.cost = at::cat(cost);
    out.log_ratio = at::cat(log_ratio);
  }
  return out;
}

}  // namespace

Draws draw(const VelocityField& field, const SamplerConfig& config, const Path& path,
           at::IntArrayRef shape, const RandomStreams& streams, const LabelSource& labels,
           const DrawOptions& options) {
  const at::NoGradGuard no_grad;
  const bool ode = is_ode(config);
  const bool has_table = !ode && !is_sde(config);
  const Drawing drawing{
      field,
      config,
      path,
      shape,
      streams,
      options,
      grid_of(config, path),
      has_table ? table_of(config, path) : TransitionTable{},
      {ode ? parse_ode_method(config.name.substr(4)) : OdeMethod::kHeun, config.rtol, config.atol},
      options.reference && has_table};
  const std::int64_t pieces = (options.n + options.chunk - 1) / options.chunk;
  std::vector<Draws> parts(static_cast<std::size_t>(pieces));
  std::mutex mutex;
  std::int64_t done = 0;
  const std::int64_t rank = options.shared ? world_rank() : 0;
  const std::int64_t size = options.shared ? world_size() : 1;
  parallel_for((pieces - rank + size - 1) / size, [&](std::int64_t mine) {
    const std::int64_t i = rank + mine * size;
    const std::int64_t begin = options.first + i * options.chunk;
    const std::int64_t n = std::min(options.chunk, options.n - i * options.chunk);
    parts[static_cast<std::size_t>(i)] = drawing.piece(begin, n, labels(begin, n));
    const std::lock_guard lock(mutex);
    done = std::min(options.n, done + n * size);
    if (options.progress) options.progress(done);
  });
  if (size > 1) exchange(parts, options, shape, labels, drawing.costs);
  Draws out = joined(parts);
  if (!at::isfinite(out.x).all().item<bool>()) {
    fail(ErrorKind::kNonFinite, cat("sampler ", config.name, " produced NaN or infinity"),
         "use more steps or another sampler");
  }
  return out;
}

}  // namespace tiltflow
