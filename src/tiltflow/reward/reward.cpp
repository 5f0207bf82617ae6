#include "tiltflow/reward/reward.h"

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/reward/aesthetic.h"
#include "tiltflow/reward/class_log_prob.h"
#include "tiltflow/reward/closed_form.h"
#include "tiltflow/reward/torchscript.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

struct Row {
  RewardListing listing;
  std::shared_ptr<const Reward> (*make)(const RewardTerm&);
};

// The registry: one row per reward.
const std::vector<Row>& rows() {
  static const std::vector<Row> table{
      {{"ink", "mean pixel value of the image (brightness)"}, make_ink},
      {{"brightness", "mean pixel value, or -(mean - target)^2 with a target"}, make_brightness},
      {{"linear", "slope . x, summed over all entries"}, make_linear_reward},
      {{"quadratic", "-curvature/2 |x - center|^2, summed over all entries"},
       make_quadratic_reward},
      {{"step", "1 where slope . x exceeds level, else 0; has no gradient"}, make_step_reward},
      {{"log-density",
        "log-density of a Gaussian mixture (args: weights, means, deviations); minus that of N(0, "
        "I) with over_normal"},
       make_log_density},
      {{"class-log-prob", "log-probability of a class under a judge (classifier file)"},
       make_class_log_prob},
      {{"aesthetic", "LAION aesthetic score: a head on CLIP image embeddings"}, make_aesthetic},
      {{"torchscript",
        "a module saved with torch.jit.save: forward(images) or forward(images, labels)"},
       make_torchscript},
  };
  return table;
}

class WeightedSum final : public Reward {
 public:
  // `blind`: whether a part was declared to have no gradient.
  WeightedSum(std::vector<double> scales, std::vector<std::shared_ptr<const Reward>> parts,
              bool blind)
      : scales_(std::move(scales)), parts_(std::move(parts)) {
    info_.has_gradient = !blind;
    std::vector<std::string> names;
    for (std::size_t i = 0; i < parts_.size(); ++i) {
      names.push_back(cat(compact(scales_[i]), " ", parts_[i]->info().name));
      info_.has_gradient = info_.has_gradient && parts_[i]->info().has_gradient;
      info_.gradient_known = info_.gradient_known && parts_[i]->info().gradient_known;
    }
    info_.name = join(names, " + ");
  }
  const RewardInfo& info() const override { return info_; }
  at::Tensor score(const at::Tensor& samples, const RewardCondition& condition) const override {
    at::Tensor total;
    for (std::size_t i = 0; i < parts_.size(); ++i) {
      const at::Tensor part = parts_[i]->score(samples, condition) * scales_[i];
      total = total.defined() ? total + part : part;
    }
    return total;
  }
  std::vector<const Reward*> terms() const override {
    std::vector<const Reward*> out;
    for (const auto& part : parts_) out.push_back(part.get());
    return out;
  }
  std::vector<double> scales() const override { return scales_; }

 private:
  std::vector<double> scales_;
  std::vector<std::shared_ptr<const Reward>> parts_;
  RewardInfo info_;
};

}  // namespace

void bind(Fields& f, RewardTerm& c) {
  std::vector<std::string> names;
  for (const RewardListing& listing : reward_listing()) names.push_back(listing.name);
  f.value("name", c.name, "which reward; see `tiltflow list rewards`", one_of(names));
  f.value("scale", c.scale, "factor on the reward: the lambda of the tilt");
  f.value("slope", c.slope, "linear, step: one number for all entries or one per dimension");
  f.value("center", c.center, "quadratic: one number for all entries or one per dimension");
  f.value("curvature", c.curvature, "quadratic: curvature", positive());
  f.value("level", c.level, "step: where it is");
  f.value("over_normal", c.over_normal,
          "log-density: minus the log-density of N(0, I); on a standard normal base the tilted law "
          "is the mixture");
  f.value("label", c.label, "class-log-prob: the class; -1 = the label the sample was drawn with",
          at_least_integer(-1));
  f.path("judge", c.judge, PathKind::kWeights, "class-log-prob: classifier file");
  f.value("target", c.target, "brightness: wanted mean; negative = the brighter the better",
          between(-1, 1));
  f.path("clip", c.clip, PathKind::kWeights,
         "aesthetic: CLIP image tower, folder or file (ViT-L/14 for the published head)");
  f.path("head", c.head, PathKind::kWeights, "aesthetic: file of the head");
  f.table("args", c.args,
          "aesthetic: num_heads and activation of a CLIP whose file does not say; log-density: "
          "weights, means, deviations");
  f.path("file", c.file, PathKind::kAll, "torchscript: the module");
  f.value("gradient", c.gradient,
          "false: a black box without gradient, for methods that need none and for a learned "
          "surrogate; modules without one are found out");
}

RewardTerm own_reward(std::shared_ptr<const Reward> reward, double scale) {
  RewardTerm out;
  out.name = reward->info().name;
  out.scale = scale;
  out.own = std::move(reward);
  return out;
}

std::shared_ptr<const Reward> make_reward(const RewardTerm& term) {
  if (term.own) return term.own;
  std::vector<std::string> names;
  for (const Row& row : rows()) {
    if (row.listing.name == term.name) return row.make(term);
    names.push_back(row.listing.name);
  }
  fail(ErrorKind::kConfig,
       cat("reward '", term.name, "' is unknown", did_you_mean(term.name, names)),
       "known: " + join(names, ", "));
}

std::shared_ptr<const Reward> make_weighted_sum(const std::vector<RewardTerm>& terms) {
  if (terms.empty()) {
    fail(ErrorKind::kConfig, "no reward given", "add a section [[reward]] with a name and a scale");
  }
  std::vector<double> scales;
  std::vector<std::shared_ptr<const Reward>> parts;
  bool blind = false;
  for (const RewardTerm& term : terms) {
    scales.push_back(term.scale);
    parts.push_back(make_reward(term));
    blind = blind || !term.gradient;
  }
  return std::make_shared<WeightedSum>(std::move(scales), std::move(parts), blind);
}

const std::vector<RewardListing>& reward_listing() {
  static const std::vector<RewardListing> listing = [] {
    std::vector<RewardListing> out;
    for (const Row& row : rows()) out.push_back(row.listing);
    return out;
  }();
  return listing;
}

}  // namespace tiltflow
