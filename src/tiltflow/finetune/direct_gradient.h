// Reward gradients straight through the sampler. The path is rolled out without a graph; a part of
// it is then run again with one.
//   draft            the last K steps, reward at the end point; K = all: full backpropagation
//   (Clark et al. 2023) alignprop        draft with the window drawn anew from 1 .. all steps
//   (Prabhudesai et al. 2023, arXiv 2310.03739) draft-lv         the last step only, and copies of
//   the end point noised back to it and stepped again: lower variance (Clark et al. 2023) refl one
//   late step, reward at its data prediction (Xu et al. 2023) drtune           a few steps up to a
//   late stop, network inputs detached, reward at the data prediction (Wu et al. 2024) leap-align
//   two jumps of the flow, t_k -> t_j -> 1 with k < j drawn anew, values of the cached path and
//   gradients of the jumps; the path of the
//                    gradient through the second jump's input is damped (arXiv 2604.15311)
//   discrete-adjoint draft with K = all and the exact path KL as cost: the gradient of E[1/2 int
//   |u|^2 - r]; its optimum is the tilted law
// Without the cost nothing holds the model back but its capacity and early stopping: the fixed
// point is not the tilted law.
#pragma once

#include "tiltflow/config/fields.h"
#include "tiltflow/finetune/method.h"

namespace tiltflow {

struct DirectGradientConfig {
  std::int64_t last =
      1;  // draft: steps with a graph; 0 = all, truncated at random when `random_last` is set
  bool random_last = false;      // draft: 1..last steps, drawn anew
  std::int64_t copies = 2;       // draft-lv
  double late_fraction = 0.4;    // refl, drtune: share of the grid where the stop is drawn
  std::int64_t graph_steps = 3;  // drtune
  double nested = 0.3;  // leap-align: factor on the gradient through the second jump's input
  double tau = 0.1;     // leap-align: smallest distance between jump and path in its weight
  double kl = 0;        // weight of the path KL over the steps with a graph
  double hinge = 0;     // with `hinged`: max(0, hinge - r) instead of -r
  bool hinged = false;
  double preserve =
      0;  // weight of the mean squared distance to the base's velocity on the steps with a graph
};
void bind_for(Fields& f, DirectGradientConfig& c, const std::string& method);

class DirectGradient final : public FinetuneMethod {
 public:
  DirectGradient(std::string method, DirectGradientConfig config);
  std::string name() const override { return method_; }
  MethodNeeds needs() const override {
    return {true, false, config_.kl > 0, /*group=*/1, /*on_policy=*/true};
  }
  bool adds_extra_reward() const override { return true; }
  double training_calls(const TransitionTable& table) const override;
  void begin_step(const FinetuneContext& context, std::int64_t step, std::int64_t pass) override;
  Batch collect(const FinetuneContext& context, std::int64_t step, std::int64_t first,
                std::int64_t n, bool will_reuse) override;
  LossReport loss(const FinetuneContext& context, const Batch& batch, std::int64_t total) override;
  void end_step(std::map<std::string, double>& metrics) override { finish_batch_metrics(metrics); }

 private:
  bool window() const {
    return method_ == "draft" || method_ == "alignprop" || method_ == "discrete-adjoint";
  }
  struct Pass;  // of the loss through the steps with a graph
  std::string method_;
  DirectGradientConfig config_;
  std::size_t begin_ = 0;
  std::size_t stop_ = 0;     // steps [begin, stop) are run again; the reward is at X_stop,
                             // or at its data prediction
  std::vector<bool> graph_;  // of these, those whose velocity has a graph
};
const std::vector<std::string>& direct_gradient_methods();

}  // namespace tiltflow
