// Discrete noise schedules of noise-predicting networks (DiT, Stable Diffusion), and what one step
// from pure noise makes of a prediction. Time runs as there: 0 .. steps - 1, the last being noise.
// Source: Ho et al. 2020; Karras et al. 2022; Zheng et al. 2024 (TCD).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace tiltflow {

class DiscreteSchedule {
 public:
  // "linear" (DDPM, DiT: beta from 1e-4 to .02) or "scaled-linear" (Stable Diffusion: root of beta
  // from root .00085 to root .012), 1000 steps. Throws kConfig.
  explicit DiscreteSchedule(const std::string& name);
  std::int64_t steps() const { return static_cast<std::int64_t>(alpha_bar_.size()); }
  double alpha_bar(std::int64_t t) const { return alpha_bar_.at(static_cast<std::size_t>(t)); }
  double sigma(std::int64_t t) const;  // sqrt((1 - abar) / abar): noise per unit of data

 private:
  std::vector<double> alpha_bar_;
};

// One step for unit noise eps: the network sees input * eps at time t and answers with p; the
// sample is keep * eps + prediction * p.
struct OneStep {
  std::int64_t t = 0;
  double input = 1;
  double keep = 0;
  double prediction = 0;
};
// "euler": x = sigma eps, seen as x / sqrt(sigma^2 + 1), sample x - sigma p (SDXL-Turbo; the
// ancestral noise of the last step is 0). "ddpm": sample (eps - sqrt(1 - abar) p) / sqrt(abar).
// "tcd": that sample noised again to time 0 with p, as TCD's single step does. Throws kConfig.
OneStep one_step(const DiscreteSchedule& schedule, const std::string& kind);
const std::vector<std::string>& one_step_kinds();

}  // namespace tiltflow
