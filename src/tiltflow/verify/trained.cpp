#include "tiltflow/verify/trained.h"

#include <tuple>

#include "tiltflow/models/mlp/mlp.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/train/optimizer.h"

namespace tiltflow {

std::pair<double, double> train_policy(const Policy& policy, const StateReward& reward,
                                       const Path& path, const TransitionTable& table,
                                       const LabelsOfStep& labels_of, std::int64_t dimension,
                                       double log_z, const TrainedOptions& options) {
  MethodConfig config = options.method;
  config.adjoint = adjoint_matching_preset("exact", options.steps);
  config.adjoint.loss_steps = options.loss_steps;
  config.adjoint.keep_graphs = options.loss_steps > 0;
  config.adjoint.path_weighting = options.path_weighting;
  config.adjoint.adjoint_stride = options.adjoint_stride;
  const auto method = make_method(config);
  const RandomStreams streams(options.seed);
  OptimizerConfig optimizer_config;
  optimizer_config.learning_rate = options.learning_rate;
  optimizer_config.final_fraction = 0.01;
  AdamW optimizer(optimizer_config, policy.trainable);
  WeightAverage average(policy.trainable, 0.97);
  std::optional<ModePreservation> modes;
  if (options.modes.codes > 0) {
    modes.emplace(options.modes, std::vector<std::int64_t>{dimension}, 0, options.seed);
  }
  std::pair<double, double> losses;
  for (std::int64_t i = 0; i < options.iterations; ++i) {
    const at::AutoGradMode grad(true);
    const LabelSource labels = labels_of(i);
    FinetuneContext context{policy, reward,      path,       table, streams,
                            labels, {dimension}, at::kFloat, log_z};
    if (modes) {
      context.extra_reward = [&](const at::Tensor& x_0, const at::Tensor& x_1,
                                 const at::Tensor& of) {
        return modes->extra_reward(x_0, x_1, of);
      };
    }
    if (modes && modes->due(i)) modes->refresh(context, i);
    method->begin_step(context, i, 0);
    const LossReport report =
        method->loss(context, method->collect(context, i, 0, options.batch, false), options.batch);
    optimizer.step(
        torch::autograd::grad({report.loss}, policy.trainable.tensors()),
        optimizer_config.learning_rate * schedule_factor(optimizer_config, i, options.iterations));
    average.update(i);
    std::map<std::string, double> metrics = report.metrics.averages();
    if (config.name != "adjoint-matching") method->end_step(metrics);
    (i == 0 ? losses.first : losses.second) = report.loss.item<double>();
  }
  assign(policy.trainable, average.values(), "averaged weights");
  return losses;
}

TrainedControl train_control(const ExactProblem& problem, const TrainedOptions& options) {
  SamplerConfig sampler;
  sampler.steps = options.steps;
  const MlpConfig shape{problem.dimension(), options.hidden, options.depth, 6};
  const RandomStreams streams(options.seed);
  TrainedControl out{
      side_policy(problem.base, *make_mlp(shape, init_mlp(shape, streams)), problem.path),
      table_of(sampler, *problem.path)};

  std::shared_ptr<const StateReward> reward = problem.reward;
  if (options.reward_scale != 1) {
    QuadraticForm form = problem.form;
    form.linear = form.linear * options.reward_scale;
    form.curvature = form.curvature * options.reward_scale;
    reward = make_problem("scaled", problem.base->mixture(), form, problem.path->name()).reward;
  }
  const LabelsOfStep labels = [](std::int64_t) { return no_labels(); };
  std::tie(out.first_loss, out.last_loss) =
      train_policy(out.policy, *reward, *problem.path, out.table, labels, problem.dimension(),
                   problem.target.log_z, options);
  return out;
}

}  // namespace tiltflow
