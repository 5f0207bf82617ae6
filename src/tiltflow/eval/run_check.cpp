#include "tiltflow/eval/run_check.h"

#include "tiltflow/base/file.h"
#include "tiltflow/eval/report.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {

namespace {
constexpr std::uint32_t kCheckKey = 0xffffe000u;  // of random labels; no training step uses it
}  // namespace

FinishedRun load_finished_run(const std::filesystem::path& run) {
  const FinetuneConfig config = load_config<FinetuneConfig>(run / "config.toml", {});
  FlowModelConfig file;
  file.file = (run / "model.safetensors").string();
  return {set_up(config), load_flow_model(file, apply(config.compute))};
}

TiltedCheck check_run(const std::filesystem::path& run) {
  const auto [setup, tuned] = load_finished_run(run);
  const FinetuneConfig& config = setup.config;
  TiltedCheckOptions options;
  options.base_samples = config.check.base_samples, options.tuned_samples = config.check.tuned_samples;
  options.standard_errors = config.check.standard_errors, options.allowance = config.check.allowance;
  if (!config.check.judge.empty()) options.judge = load_classifier(config.check.judge);
  options.samplers.push_back(setup.config.sampler);
  if (!config.check.ode.empty()) {
    SamplerConfig ode = setup.config.sampler;
    ode.name = config.check.ode, ode.steps = config.check.ode_steps;
    options.samplers.push_back(ode);
  }
  const TiltedCheck check = check_tilted_law(*setup.for_check(setup.flow.model), *setup.for_check(tuned.model), *setup.flow.path, *setup.reward, setup.flow.model->sample_shape(), setup.streams, setup.labels_at(kCheckKey), options);
  write_file_atomic(run / "check.json", to_json(check).dump(1) + "\n");
  write_report(run);
  return check;
}

}  // namespace tiltflow
