#include "tiltflow/train/start_check.h"

#include <unistd.h>

#include <algorithm>

#include "tiltflow/base/error.h"
#include "tiltflow/base/log.h"
#include "tiltflow/base/problems.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/models/model_file.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/tensor/precision.h"

namespace tiltflow {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kSamples = 2;

// One velocity of the tuned model at the first time, with its backward pass. Returns the data it
// points at, x_0 + (1 - t) v.
at::Tensor check_model(const FinetuneSetup& s, const at::Tensor& labels) {
  const at::AutoGradMode grad(true);
  const Policy policy = s.for_training(
      make_policy(s.flow, s.config.policy, static_cast<std::uint64_t>(s.config.seed)));
  const double t = s.table.steps.front().t;
  const at::Tensor x_0 =
      prior_sample(s.streams, RunKey::kStartCheck, 0, kSamples, s.flow.model->sample_shape());
  const at::Tensor v = policy.tuned->velocity(x_0, time_tensor(t, x_0), Condition{labels});
  require_finite(v, cat("the velocity of ", s.config.model.file));
  const auto gradients = torch::autograd::grad({v.square().mean()}, policy.trainable.tensors(), {},
                                               false, false, /*allow_unused=*/true);
  for (const at::Tensor& g : gradients) {
    if (g.defined()) require_finite(g, cat("a gradient of ", s.config.model.file));
  }
  if (make_method(s.config.method)->needs().base_jacobian) {
    require_finite(
        policy.base->vjp(x_0, time_tensor(t, x_0), Condition{labels}, v.detach()).input_gradient,
        cat("a product with the Jacobian of ", s.config.model.file));
  }
  return (x_0 + (1 - t) * v).detach();
}

// A score must not depend on the other samples of the batch: runs score pieces of any size. The
// tolerance is that of bf16 networks.
void check_scores(const FinetuneSetup& s, const at::Tensor& states, const at::Tensor& labels) {
  const std::string& name = s.reward->reward().info().name;
  const at::Tensor both = s.reward->score(states, labels);
  if (!at::equal(both, s.reward->score(states, labels))) {
    log_warn(cat("reward ", name,
                 " is random: the same samples score differently when they are scored again; a "
                 "resumed run will not repeat itself"));
    return;
  }
  const at::Tensor one =
      s.reward->score(states.narrow(0, 0, 1), labels.defined() ? labels.narrow(0, 0, 1) : labels);
  const double difference = (both[0] - one[0]).abs().item<double>();
  const double size = at::cat({both, one}).abs().max().item<double>();
  if (difference <= 0.02 * size + 1e-4) return;
  fail(ErrorKind::kConfig,
       cat("reward ", name, " scores a sample ", compact(both[0].item<double>()),
           " beside another one and ", compact(one[0].item<double>()), " alone"),
       "a score must be of its sample only: no normalisation, mean or sorting over the batch");
}

bool lost(const ObservedTerm& term) { return term.gradient != TermGradient::kPresent; }

// Zero at what a single step points at may be a flat spot: two samples of the base decide.
void check_reward_gradient(const FinetuneSetup& s, const at::Tensor& states,
                           const at::Tensor& labels) {
  if (!needs_reward_gradient(s.config)) return;
  s.reward->score_and_gradient(states, labels);
  const std::vector<ObservedTerm> terms = observe_terms(*s.reward, states, labels);
  if (std::none_of(terms.begin(), terms.end(), lost)) return;
  DrawOptions options;
  options.n = kSamples;
  options.step = RunKey::kStartCheck;
  const auto base = s.for_check(s.flow.model);
  const Draws draws = draw(*base, s.config.sampler, *s.flow.path, s.flow.model->sample_shape(),
                           s.streams, s.labels_at(RunKey::kStartCheck), options);
  for (const ObservedTerm& term : observe_terms(*s.reward, draws.x, draws.labels)) {
    if (!lost(term)) continue;
    if (term.varies) {
      refuse_missing_gradient(s.config.method.name, term.name,
                              "scores of two samples of the base differ, and the gradient is "
                              "exactly zero at both");
    }
    log_warn(cat("reward ", term.name, " scores two samples of the base alike, and its gradient ",
                 "is exactly zero at both: a run refuses a reward that is constant"));
  }
}

void check_judge(const FinetuneSetup& s, const at::Tensor& states) {
  const std::string& file = s.config.check.judge;
  if (file.empty()) return;
  const auto judge = load_classifier(file);
  const at::NoGradGuard no_grad;
  const at::Tensor pictures = s.reward->decode(states);
  const std::int64_t channels = judge->config().in_channels;
  const std::int64_t size = judge->config().input_size;
  const std::vector<std::int64_t> wanted{channels, size, size};
  if (pictures.sizes().slice(1) != at::IntArrayRef(wanted)) {
    fail(ErrorKind::kConfig,
         cat("check.judge: ", file, " sees pictures ", shape_text(wanted), ", the model makes ",
             shape_text(pictures.sizes().slice(1))),
         "choose a judge trained on such pictures, or leave check.judge empty");
  }
  require_finite(judge->logits(pictures), cat("the judge ", file));
}

}  // namespace

void check_start(const FinetuneSetup& s) {
  Problems problems;
  const at::Tensor labels = s.labels_at(RunKey::kStartCheck)(0, kSamples);
  at::Tensor states =
      prior_sample(s.streams, RunKey::kStartCheck, 0, kSamples, s.flow.model->sample_shape());
  problems.check([&] { states = check_model(s, labels); });
  problems.check([&] {
    check_scores(s, states, labels);
    check_reward_gradient(s, states, labels);
  });
  problems.check([&] { check_judge(s, states); });
  problems.check([&] { make_method(s.config.method)->check_files(s.flow.model->sample_shape()); });
  problems.raise();
}

double output_bytes(const FinetuneSetup& s) {
  const double weights = s.flow.model->parameters().bytes();
  const double trained = trainable_bytes(s.flow, s.config.policy);
  const double checkpoint = 4 * trained;  // weights, average, two moments
  return static_cast<double>(s.config.train.keep_checkpoints + 1) * checkpoint + weights +
         2 * trained;
}

void check_output_folder(const fs::path& folder, double bytes) {
  fs::path there = fs::absolute(folder);
  while (!fs::exists(there) && there.has_relative_path()) there = there.parent_path();
  if (!fs::is_directory(there)) {
    fail(ErrorKind::kConfig,
         cat("the folder ", folder.string(), " cannot be made: ", there.string(), " is no folder"),
         "choose another folder with --out");
  }
  if (::access(there.c_str(), W_OK | X_OK) != 0) {
    fail(ErrorKind::kConfig,
         cat("the folder ", folder.string(), " cannot be made: ", there.string(),
             " may not be written"),
         "choose another folder with --out");
  }
  std::error_code unknown;
  const fs::space_info disk = fs::space(there, unknown);
  if (unknown || static_cast<double>(disk.available) >= bytes) return;
  fail(ErrorKind::kConfig,
       cat("the run needs about ", format_bytes(bytes), " in ", folder.string(), ", its disk has ",
           format_bytes(static_cast<double>(disk.available)), " left"),
       "choose another folder with --out, or keep fewer checkpoints (train.keep_checkpoints)");
}

}  // namespace tiltflow
