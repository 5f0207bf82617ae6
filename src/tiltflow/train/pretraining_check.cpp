#include "tiltflow/train/pretraining_check.h"

#include <algorithm>

#include "tiltflow/models/precision_choice.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/tensor/precision.h"
#include "tiltflow/train/gan_training.h"
#include "tiltflow/train/pretraining.h"

namespace tiltflow {
namespace {

// Loss and gradients of the first piece of the first step.
void try_first_item(Objective& objective) {
  const at::AutoGradMode grad(true);
  objective.begin_step(0);
  const LossReport report = objective.micro_batch(0);
  require_finite(report.loss, "the loss of the first images");
  const auto gradients = torch::autograd::grad({report.loss}, objective.trainable().tensors(), {},
                                               false, false, /*allow_unused=*/true);
  for (const at::Tensor& g : gradients) {
    if (g.defined()) require_finite(g, "a gradient of the first images");
  }
}

}  // namespace

void check_start(PretrainSetup s) {
  const PretrainConfig& c = s.config;
  const auto seed = static_cast<std::uint64_t>(c.seed);
  const std::int64_t micro_batch = std::min<std::int64_t>(2, c.batch);
  if (c.kind == "flow") {
    FlowMatchingObjective objective(std::move(s.model), make_path(c.model.path), std::move(s.data),
                                    {c.batch, micro_batch, c.label_dropout, c.time_sampling,
                                     c.model.prediction, c.loss_weight, c.epsilon},
                                    seed, s.teacher);
    try_first_item(objective);
  } else if (c.kind == "gan") {
    GanObjective objective(gan_config_from_args(c.model.args), std::move(s.data),
                           {c.batch, micro_batch, c.discriminator_steps}, seed,
                           chosen_precision(c.compute));
    try_first_item(objective);
  } else {
    ClassificationObjective objective(classifier_config_from_args(c.model.args), std::move(s.data),
                                      {c.batch, micro_batch, c.noise, c.shift, c.label_smoothing},
                                      seed);
    try_first_item(objective);
  }
}

}  // namespace tiltflow
