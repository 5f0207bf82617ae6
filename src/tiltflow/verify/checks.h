// The parts of the exactness suite; each returns rows. `full` asks for the larger version.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "tiltflow/verify/table.h"

namespace tiltflow {

constexpr std::int64_t kLawSamples =
    20000;  // drawn of a law that a row compares with the exact one

struct VerifyTask {
  std::string name;  // what --only selects by
  std::function<std::vector<VerifyRow>()> run;
};

// Adjoint = autograd through the unrolled chain; vector-Jacobian products against finite
// differences; closed form.
std::vector<VerifyTask> adjoint_checks(bool full);
// Zero and constant rewards change nothing; bias falls like O(h) over K; memorylessness of the base
// sampler.
std::vector<VerifyTask> limit_checks(bool full);
// Three paths with their recommended integrators: SDE, half-noise SDE and ODE of the tuned field
// give one law.
std::vector<VerifyTask> path_checks(bool full, std::uint64_t seed);
// Networks trained by Adjoint Matching on exact problems.
std::vector<VerifyTask> trained_checks(bool full, std::uint64_t seed);
// LoRA, control networks, labels and guidance, trained; full suite only.
std::vector<VerifyTask> policy_checks(bool full, std::uint64_t seed);
// Every fine-tuning method on what it is known to sample, and variants that must miss it.
std::vector<VerifyTask> method_checks(std::uint64_t seed);
// Gradients that two methods share, or that another way of computing gives.
std::vector<VerifyTask> identity_checks(std::uint64_t seed);
// Broken variants; every row must miss its tolerance.
std::vector<VerifyTask> negative_controls(bool full, std::uint64_t seed);

}  // namespace tiltflow
