#include "tiltflow/reward/class_log_prob.h"

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/models/model_file.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

class ClassLogProb final : public Reward {
 public:
  ClassLogProb(std::shared_ptr<const Classifier> judge, std::int64_t label)
      : judge_(std::move(judge)), label_(label) {
    info_.name = label < 0 ? "class-log-prob (own label)" : cat("class-log-prob ", label);
  }
  const RewardInfo& info() const override { return info_; }
  at::Tensor score(const at::Tensor& samples, const RewardCondition& condition) const override {
    const at::Tensor log_p = judge_->logits(samples).log_softmax(1);  // [N, classes]
    if (label_ >= 0) return log_p.select(1, label_);
    if (!condition.labels.defined()) {
      fail(ErrorKind::kConfig, "reward class-log-prob with label = -1 needs conditional samples",
           "set labels.kind to uniform or fixed, or give a label");
    }
    if (condition.labels.max().item<std::int64_t>() >= log_p.size(1)) {
      fail(ErrorKind::kConfig,
           "reward class-log-prob with label = -1: a sample has no class of the judge",
           "give a label, or set labels.dropout = 0");
    }
    return log_p.gather(1, condition.labels.unsqueeze(1)).squeeze(1);
  }

 private:
  std::shared_ptr<const Classifier> judge_;
  std::int64_t label_;
  RewardInfo info_;
};

}  // namespace

std::shared_ptr<const Reward> make_class_log_prob(const RewardTerm& term) {
  if (term.judge.empty()) {
    fail(ErrorKind::kConfig, "reward class-log-prob: judge is missing",
         "judge = \"assets/mnist-judge.safetensors\", or train one with `tiltflow pretrain`");
  }
  auto judge = load_classifier(term.judge);
  if (term.label >= judge->config().num_classes) {
    fail(ErrorKind::kConfig,
         cat("reward class-log-prob: label ", term.label,
             " is out of range, the judge has classes 0..", judge->config().num_classes - 1));
  }
  return std::make_shared<ClassLogProb>(std::move(judge), term.label);
}

}  // namespace tiltflow
