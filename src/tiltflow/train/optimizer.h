// AdamW (Loshchilov & Hutter 2019, fused multi-tensor kernel), learning-rate schedules, gradient
// norm and clipping, EMA.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tiltflow/config/fields.h"
#include "tiltflow/tensor/parameters.h"

namespace tiltflow {

struct OptimizerConfig {
  double learning_rate = 2e-4;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double epsilon = 1e-8;
  double weight_decay = 0;
  double gradient_clip = 1;         // largest global norm; 0 switches clipping off
  std::string schedule = "cosine";  // constant, cosine, linear
  std::int64_t warmup = 0;          // steps of linear warm-up
  double final_fraction = 0.05;     // learning rate at the end, as a fraction (cosine, linear)
};
void bind(Fields& f, OptimizerConfig& c);

// Factor on the learning rate at 0-based `step` of `total`; warm-up counts from 1/warmup, so the
// first step moves.
double schedule_factor(const OptimizerConfig& config, std::int64_t step, std::int64_t total);

class AdamW {
 public:
  AdamW(OptimizerConfig config, ParameterSet parameters);
  // One update; gradients in parameter order. A tensor whose gradient is undefined is left alone,
  // with its moments and step count.
  void step(const std::vector<at::Tensor>& gradients, double learning_rate);
  ParameterSet state() const;  // exp_avg.NAME, exp_avg_sq.NAME, step [number of tensors]
  void restore(const ParameterSet& state);  // throws kBadFile when it does not fit

 private:
  OptimizerConfig config_;
  ParameterSet parameters_;
  std::vector<at::Tensor> first_, second_, steps_;
};

// Global L2 norm; scales the gradients in place when it exceeds `limit` > 0. Returns the norm
// before clipping.
double clip_gradients(std::vector<at::Tensor>& gradients, double limit);

// Exponential moving average of weights; decay is capped at (1 + n)/(10 + n) after n updates so
// that it starts quickly.
class WeightAverage {
 public:
  WeightAverage(const ParameterSet& parameters, double decay);
  void update(std::int64_t updates_done);
  const ParameterSet& values() const { return average_; }

 private:
  ParameterSet parameters_, average_;
  double decay_;
};

// Exchanges the values of two sets for the lifetime of the object (evaluate the average, then go on
// training).
class SwappedWeights {
 public:
  SwappedWeights(ParameterSet target, const ParameterSet& values);
  ~SwappedWeights();
  SwappedWeights(const SwappedWeights&) = delete;
  SwappedWeights& operator=(const SwappedWeights&) = delete;

 private:
  ParameterSet target_, kept_;
};

}  // namespace tiltflow
