// The fixed point of Adjoint Matching in one dimension, solved exactly up to quadrature by one
// backward sweep over a fine grid of states: what remains is the discretisation bias. Negative
// controls replace one ingredient of the method.
#pragma once

#include "tiltflow/sampler/rollout.h"
#include "tiltflow/verify/problems.h"

namespace tiltflow {

// base velocity plus a table [K, nodes], linear between nodes on [low, high], constant outside.
// Times must be the grid's.
class TabularField final : public VelocityField {
 public:
  TabularField(std::shared_ptr<const VelocityField> base, std::vector<double> times, double low,
               double high, std::int64_t nodes);
  at::Tensor velocity(const at::Tensor& x, const at::Tensor& t,
                      const Condition& condition) const override;
  at::Tensor& table() { return table_; }

 private:
  std::int64_t step_of(double t) const;
  std::shared_ptr<const VelocityField> base_;
  std::vector<double> times_;
  double low_, high_;
  at::Tensor table_;
};

// What is trained with; the defaults are the sound method.
struct TabularVariant {
  TransitionTable rollout_table;  // how trajectories are drawn
  TransitionTable adjoint_table;  // coefficients of the adjoint recursion
  bool ode_rollout = false;       // no noise in the rollout
  bool tuned_jacobian = false;    // adjoint through the tuned field
  bool same_pairing = false;      // a_k instead of a_{k+1}
};
TabularVariant sound_variant(const TransitionTable& table);

// With A_k(x) = E[a_k | X_k = x]: A_K = -r', A_k(x) = M_k'(x) E[A_{k+1}(X_{k+1})], and the fixed
// point of the loss |delta/s + s a_{k+1}|^2 is delta_k(x) = -s^2 E[A_{k+1}(M_k(x) + delta_k(x) + s
// xi)], solved node by node.
std::shared_ptr<TabularField> solve_tabular(const ExactProblem& problem,
                                            const TabularVariant& variant);

}  // namespace tiltflow
