// What is measured of a law of samples against an exact mixture.
#pragma once

#include "tiltflow/sampler/rollout.h"
#include "tiltflow/verify/gaussian_chain.h"
#include "tiltflow/verify/table.h"

namespace tiltflow {

struct SampledLaw {
  at::Tensor x;     // [N, d] fp64
  at::Tensor cost;  // [N] path KL against the base, or undefined
};

// `n` trajectories of the table; with `base` the control cost is measured.
SampledLaw sample_law(const VelocityField& field, const TransitionTable& table,
                      std::int64_t dimension, std::int64_t n, std::uint64_t seed,
                      const VelocityField* base = nullptr);

struct LawTolerances {
  double weight = 0.03;         // of mode weights, absolute
  double mean_fraction = 0.05;  // of the mean, relative to max(|mean*|, |shift|)
  double cost_fraction = 0.04;  // of the control cost against KL
  double covariance_fraction = 0.05;
  double gap = 0.03;  // nats
};

// Rows: weight of the heaviest tilted mode, mean (along the shift), covariance (one component:
// relative Frobenius error), control cost against KL, gap certificate, sliced Wasserstein distance
// beside its floor. With `chain`, mean and gap are also held against the optimum of the discrete
// chain, to 2 % of the shift.
std::vector<VerifyRow> law_rows(const ExactProblem& problem, const std::string& name,
                                const SampledLaw& law, const LawTolerances& tolerances,
                                bool with_distance, const ChainOptimum* chain = nullptr);

// Weight of the component of p* that gained most, estimated by mean responsibility.
Estimate tilted_weight(const ExactProblem& problem, const at::Tensor& x, double* exact);

}  // namespace tiltflow
