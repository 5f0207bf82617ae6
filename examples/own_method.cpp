// A fine-tuning method that is written here: the score-function (REINFORCE) estimate of the
// gradient of KL(tuned paths, tilted paths).
//   own_method OUT
// The base is a mixture whose flow is exact; a small control network beside it is trained. The
// check at the end compares its samples with the tilted law.
#include <ATen/ATen.h>

#include <iostream>

#include "tiltflow/tiltflow.h"

using namespace tiltflow;

namespace {

class Reinforce final : public FinetuneMethod {
 public:
  std::string name() const override { return "reinforce"; }
  MethodNeeds needs() const override {
    MethodNeeds out;
    out.step_density = true;
    out.on_policy = true;
    return out;
  }
  double training_calls(const TransitionTable& table) const override { return table.size(); }
  void begin_step(const FinetuneContext&, std::int64_t, std::int64_t) override {}

  // Paths of the tuned model, and log dP*/dP of each up to a constant; without graph.
  Batch collect(const FinetuneContext& context, std::int64_t step, std::int64_t first,
                std::int64_t n, bool reuse) override {
    const std::vector<bool> graphs(context.table.steps.size(), true);
    Batch batch = collect_paths(context, step, first, n, context.labels(first, n), graphs, reuse);
    batch.rewards = context.reward.score(batch.states.back(), batch.labels);
    batch.log_weights = batch.rewards + measure_against_base(context, batch);
    return batch;
  }

  // -E[(w - mean w) log p(path)]
  LossReport loss(const FinetuneContext& context, const Batch& batch, std::int64_t total) override {
    const at::Tensor weights = (batch.log_weights - batch.log_weights.mean()).to(at::kFloat);
    const auto velocities = velocities_along(context, batch, all_steps(context.table));
    LossReport report;
    report.loss = at::zeros({});
    for (std::size_t k = 0; k < velocities.size(); ++k) {
      const at::Tensor density = transition_log_density(context.table.steps[k], batch.states[k],
                                                        velocities[k], batch.states[k + 1]);
      report.loss = report.loss - (weights * density).sum() / static_cast<double>(total);
    }
    add_batch_metrics(report, batch);
    return report;
  }
  void end_step(std::map<std::string, double>& metrics) override { finish_batch_metrics(metrics); }
};

}  // namespace

int main(int argc, char** argv) try {
  auto config = load_config<FinetuneConfig>(
      "", {"model={family='gaussian-mixture', args={means='-1 0; 1 0', deviations='0.5'}}",
           "reward=[{name='linear', slope=[1, 0]}]", "policy={kind='control', control.kind='mlp'}",
           "sampler.steps=10", "batch=128", "micro_batch=64", "train.steps=100",
           "train.learning_rate=0.005", "train.schedule=cosine", "evaluation.every=0"});
  config.method.own = [] { return std::make_unique<Reinforce>(); };
  const FinetuneSetup setup = set_up(config);
  Run run(argc > 1 ? argv[1] : "own-method", "", false);
  const TrainResult result = finetune(setup, run);
  const auto tuned = merged_model(setup.flow, setup.config.policy, result.average);
  TiltedCheckOptions options;
  options.samplers = {setup.config.sampler};
  const TiltedCheck check =
      check_tilted_law(*setup.flow.model, *tuned, *setup.flow.path, *setup.reward, {2},
                       setup.streams, no_labels(), options);
  std::cout << table_text(check);
  return check.passed ? 0 : 1;
} catch (const Error& error) {
  std::cerr << error.what() << '\n';
  return exit_code(error.kind());
}
