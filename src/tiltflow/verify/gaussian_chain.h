// The best that a discrete chain can do: for a Gaussian base and a quadratic reward the optimum of
//   E r(X_K) - sum_k E |delta_k|^2 / (2 s_k^2)
// over all mean shifts delta_k(x) is linear-quadratic, solved by one backward recursion. It
// separates the bias of a sampler at finite K from what training missed.
#pragma once

#include "tiltflow/sampler/transition_table.h"
#include "tiltflow/verify/problems.h"

namespace tiltflow {

struct ChainOptimum {
  at::Tensor mean;        // [d] of X_K
  at::Tensor covariance;  // [d, d]
  double reward = 0;      // E r(X_K)
  double cost = 0;        // KL between the two chains
  double gap(const ExactProblem& problem) const { return problem.target.log_z - (reward - cost); }
};

// Throws kFailure unless the base is a single Gaussian and every step has noise. Cost: K (d + 1)
// rows through the base.
ChainOptimum gaussian_chain_optimum(const ExactProblem& problem, const TransitionTable& table);
// The same for any field that is affine in x, e.g. a guided one, under `condition` (labels of one
// sample; may be empty).
ChainOptimum affine_chain_optimum(const VelocityField& base, const Condition& condition,
                                  const QuadraticForm& form, const TransitionTable& table);
// Mean and covariance of X_K of the base chain itself: the law that guidance gives.
ChainOptimum affine_chain_law(const VelocityField& base, const Condition& condition,
                              const QuadraticForm& form, const TransitionTable& table);

}  // namespace tiltflow
