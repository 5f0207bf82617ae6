#include <cmath>

#include "tests/support.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/flow/prediction.h"
#include "tiltflow/flow/time_grid.h"
#include "tiltflow/models/model_file.h"
#include "tiltflow/sampler/ode.h"
#include "tiltflow/sampler/sample.h"
#include "tiltflow/sampler/sde.h"
#include "tiltflow/verify/problems.h"

namespace tiltflow {
namespace {

std::vector<double> recorded_times(const Path& path, const std::string& prediction) {
  const TimeEnds ends = ode_ends(path, prediction, 1e-3);
  std::vector<double> grid = uniform_grid(9);
  for (double& t : grid) t = ends.begin + (ends.end - ends.begin) * t;
  return grid;
}

}  // namespace

// Final states of the official samplers with recorded noises: every path, prediction, diffusion,
// method and last step.
TEST(sampler_sde, EverySolverReproducesTheRecordedStates) {
  const std::shared_ptr<const VelocityModel> model =
      load_velocity_model(test::golden("sit_a_ema.safetensors"), {{"num_heads", "4"}}).model;
  const ParameterSet g = read_safetensors(test::golden("samplers.safetensors")).tensors;
  const Condition labels{g.at("y")};
  const NoiseSource noise = [&](int k) { return g.at("noise")[k]; };
  const auto lower = [](std::string text) {
    for (char& c : text) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    return text;
  };
  int stochastic = 0;
  int deterministic = 0;
  for (const auto& [key, expected] : g) {
    const std::vector<std::string> part = split(key, '.');
    if (part.size() < 3 || part[0] == "ode") continue;
    const auto path = make_path(lower(part[0]));
    SdeOptions options;
    options.method = lower(part[2]);
    options.form = lower(part[3]);
    options.last_step = lower(part[4]);
    if (part.size() > 5) options.norm = std::atof((part[5].substr(4) + "." + part[6]).c_str());
    const PredictionField field(model, path, part[1]);
    const at::Tensor found = solve_sde(
        field, *path, g.at("z"), sde_grid(*path, part[1], options, 10), labels, noise, options);
    EXPECT_LT(test::relative_error(found, expected), 1e-4) << key;
    ++stochastic;
  }
  for (const auto& [key, expected] : g) {
    std::vector<std::string> part = split(key, '.');
    const bool exact = part.size() > 1 && part[1] == "exact";
    if (part.size() < 4 || part[0] != "ode" || part[3] == "heun3") continue;
    if (exact) part = {"ode", part[2], part[3], "dopri5"};
    const auto path = make_path(lower(part[1]));
    OdeOptions options;
    options.method = parse_ode_method(part[3] == "heun2" ? "heun" : part[3]);
    options.rtol = 1e-6;
    options.atol = 1e-7;
    const PredictionField field(model, path, part[2]);
    const at::Tensor found =
        solve_ode(field, g.at("ode.z"), recorded_times(*path, part[2]), {g.at("ode.y")}, options).x;
    // Adaptive: the recorded states are only as good as their tolerance, the exact ones are
    // solutions in fp64.
    const double tolerance = exact ? 1e-4 : part[3] == "dopri5" ? 6e-3 : 1e-5;
    EXPECT_LT(test::relative_error(found, expected), tolerance) << key;
    ++deterministic;
  }
  EXPECT_GT(stochastic, 120);
  EXPECT_GT(deterministic, 30);
}

// Every diffusion form leaves the marginals alone: a Gaussian comes out as itself up to the order
// of the step.
TEST(sampler_sde, EveryDiffusionFormGivesTheSameLaw) {
  const ExactProblem p = line_gaussian(false);
  for (const std::string& form : diffusion_forms()) {
    for (const std::string& name : {std::string("sde-euler"), std::string("sde-heun")}) {
      SamplerConfig config;
      config.name = name;
      config.steps = 200;
      config.sde.form = form;
      config.sde.last_step_size = 0.01;
      DrawOptions options;
      options.n = 2000;
      options.chunk = 1000;
      const at::Tensor x =
          draw(*p.base, config, *p.path, {1}, RandomStreams(3), no_labels(), options).x;
      EXPECT_NEAR(x.mean().item<double>(), 0.5, 4 * 0.7 / std::sqrt(2000.0) + 0.01)
          << form << " " << name;  // four standard errors and O(h)
      EXPECT_NEAR(x.std().item<double>(), 0.7, 4 * 0.7 / std::sqrt(4000.0) + 0.01)
          << form << " " << name;
    }
  }
  SamplerConfig none;
  none.name = "sde-euler";
  test::expect_error(ErrorKind::kConfig, "no transition table", [&] { table_of(none, *p.path); });
}

}  // namespace tiltflow
