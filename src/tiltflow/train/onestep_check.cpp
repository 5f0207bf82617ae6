#include "tiltflow/train/onestep_check.h"

#include "tiltflow/base/count.h"
#include "tiltflow/base/error.h"
#include "tiltflow/base/problems.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/reward/state_reward.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/tensor/precision.h"

namespace tiltflow {
namespace {

at::Tensor first_labels(const Generator& generator) {
  return generator.classes() == 0 ? at::Tensor() : at::zeros({2}, at::kLong);
}

// Two samples with their gradient in the noise.
at::Tensor check_generator(const Generator& generator) {
  const at::AutoGradMode grad(true);
  const at::Tensor z = RandomStreams(0)
                           .normal(Purpose::kProbe, 0, 0, 0, 2, generator.noise_shape())
                           .set_requires_grad(true);
  const at::Tensor made = generator.generate(z, first_labels(generator));
  require_finite(made, "what the generator makes");
  require_finite(torch::autograd::grad({made.square().mean()}, {z})[0], "the generator's gradient");
  return made.detach();
}

void check_rewards(const Generator& generator, const at::Tensor& samples,
                   const std::vector<RewardTerm>& terms, bool with_gradient) {
  const auto reward = make_weighted_sum(terms);
  const StateReward of_states(reward, pixel_decoder());
  for (const ObservedTerm& term : observe_terms(of_states, samples, first_labels(generator))) {
    const bool none = !reward->info().has_gradient || term.gradient == TermGradient::kNone;
    if (with_gradient && none) {
      fail(ErrorKind::kConfig,
           cat("reward ", term.name, " has no gradient; aligning noise needs one"),
           "put it into [[held_out]] to watch it");
    }
  }
}

}  // namespace

std::vector<std::string> check_start(const OneStepConfig& c) {
  Problems problems;
  std::vector<std::string> lines;
  std::unique_ptr<Generator> generator;
  at::Tensor samples;
  problems.check([&] {
    generator = open_generator(c.generator, apply(c.compute));
    samples = check_generator(*generator);
    lines.push_back(cat("generator ", c.generator.file, ": ", generator->spec().family, ", noise ",
                        shape_text(generator->noise_shape()), ", samples ",
                        shape_text(generator->sample_shape())));
  });
  problems.check([&] { feature_function(c.features); });
  if (!c.sft.anchor_file.empty()) {
    problems.check(
        [&] { open_generator_file(c.generator, c.sft.anchor_file, c.generator.section); });
  }
  if (!c.sft.assigned.empty()) {
    problems.check([&] { lines.push_back(counted(read_assigned(c.sft.assigned).size(), "pair")); });
  }
  if (!c.targets.path.empty()) {
    problems.check([&] {
      const std::vector<Target> targets = list_targets(c.targets);
      if (generator) read_target(targets.front(), *generator);
      lines.push_back(counted(static_cast<std::int64_t>(targets.size()), "target"));
    });
  }
  if (samples.defined() && !c.reward.empty()) {
    problems.check([&] { check_rewards(*generator, samples, c.reward, /*with_gradient=*/true); });
  }
  if (samples.defined() && !c.held_out.empty()) {
    problems.check(
        [&] { check_rewards(*generator, samples, c.held_out, /*with_gradient=*/false); });
  }
  problems.raise();
  return lines;
}

}  // namespace tiltflow
