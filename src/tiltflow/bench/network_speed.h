// Speed measurements: ratios within one run, never absolute promises.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "tiltflow/policy/policy.h"

namespace tiltflow {

// Matrix-product rate in GFLOP/s with `workers` independent single-thread streams of 512^3 products
// (8192^3 on other devices); best of several.
double gemm_peak(int workers, bool bf16);

// GB/s of copies of 256 MB by `workers` threads, bytes read and bytes written; on other devices of
// 1 GB. Best of several.
double copy_rate(int workers);

// SiT constructor arguments of the demo's size.
inline ModelSpec small_sit() {
  return {"sit",
          {{"input_size", "28"},
           {"patch_size", "4"},
           {"in_channels", "1"},
           {"hidden_size", "96"},
           {"depth", "6"},
           {"num_heads", "3"},
           {"num_classes", "10"},
           {"learn_sigma", "false"}}};
}

struct AmBenchOptions {
  ModelSpec model = small_sit();
  std::string policy = "full";
  std::int64_t batch = 32;
  std::int64_t micro_batch = 16;
  std::int64_t steps = 20;
  std::int64_t loss_steps = 10;
  std::int64_t repeats = 3;
  bool keep_graphs = true;  // of the rollout, for the loss
  std::int64_t adjoint_stride = 1;
  ModelRuntime runtime;
};
// One Adjoint Matching iteration with a quadratic reward: seconds (min, median), network
// evaluations, GFLOP/s, fraction of the matrix-product peak measured between the repetitions, peak
// memory, threads.
nlohmann::ordered_json bench_adjoint_matching(const AmBenchOptions& options);

struct NetworkBenchOptions {
  ModelSpec model = small_sit();
  std::int64_t batch = 32;
  std::int64_t micro_batch = 16;
  std::int64_t repeats = 5;
  std::int64_t steps = 20;  // sample: Euler steps of the ODE
  ModelRuntime runtime;
};
// `what`: forward (no graph), sample (a whole ODE from noise to pictures), vjp (forward and the
// product of a vector with the Jacobian in x), train-step (flow-matching loss, weight gradients,
// AdamW, averaged weights). As bench_adjoint_matching; random weights everywhere.
nlohmann::ordered_json bench_network(const std::string& what, const NetworkBenchOptions& options);

// One step of the trainer as `tiltflow pretrain` takes it: noise and times drawn, loss, gradients,
// AdamW, averaged weights, log line.
nlohmann::ordered_json bench_pretraining(const NetworkBenchOptions& options);

// Forward GFLOP per sample of a SiT (2 x multiply-adds of all matrix products).
double sit_forward_gflop(const VelocityModel& model);

}  // namespace tiltflow
