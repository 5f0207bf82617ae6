#include "tiltflow/models/runtime_config.h"

#include <algorithm>

#include "tiltflow/base/log.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/models/precision_choice.h"
#include "tiltflow/nn/fused_cuda.h"
#include "tiltflow/nn/kernels/kernels.h"
#include "tiltflow/nn/machine_choices.h"
#include "tiltflow/tensor/device.h"
#include "tiltflow/tensor/parallel.h"
#include "tiltflow/tensor/process_group.h"

namespace tiltflow {

void bind(Fields& f, ComputeConfig& c) {
  f.value("workers", c.workers,
          "pieces of work at a time; 0 = one per core, divided among the processes of a machine",
          at_least_integer(0));
  f.value("threads", c.threads, "libtorch threads inside each piece", at_least_integer(1));
  f.value("device", c.device,
          "where networks compute: cpu, cuda, cuda:1 or another device of libtorch; everything "
          "around them stays on the CPU");
  f.value("precision", c.precision,
          "of matrix products: fp32, bf16, or auto (bf16 where this machine multiplies at least "
          "1.2 times as fast in it); everything else is fp32",
          one_of({"fp32", "bf16", "auto"}));
  f.value("attention", c.attention, "math (batched products) or fused (libtorch's kernel)",
          one_of({"math", "fused"}));
  f.value("kernels", c.kernels,
          "of transformer blocks: fused (one pass per step, each in the way that a short "
          "measurement found fastest on this machine), fixed (by fixed rules instead of "
          "measurements) or plain (one operator after another; also when attention is math)",
          one_of({"fused", "fixed", "plain"}));
  f.value("graphs", c.graphs,
          "on CUDA: record network calls as CUDA graphs, which launch all their kernels at once");
  f.value("memory_gb", c.memory_gb,
          "limit of the memory plan (micro_batch = 0), in 10^9 bytes; 0 = 80 % of what is free, "
          "half of "
          "it on a GPU",
          at_least(0));
  f.value("activation_checkpointing", c.activation_checkpointing,
          "recompute transformer blocks in the backward pass: less memory, more time");
}

std::string kernels_name(const ModelRuntime& runtime) {
  if (!runtime.fused) return "plain";
  if (compute_device().is_cpu()) return kernels::kernels().name;
  return fused::cuda::kBuilt && compute_device().is_cuda() ? "cuda" : "plain";
}

ModelRuntime apply(const ComputeConfig& c) {
  set_compute_device(c.device, world_rank() % world_local_size());
  int workers = static_cast<int>(c.workers);
  if (workers == 0 && !compute_device().is_cpu()) {
    workers = 1;  // one stream of work; a larger `micro-batch` fills the device
  }
  if (workers == 0 && world_local_size() > 1) {
    workers = std::max(
        1, hardware_cores() / world_local_size());  // processes of one machine divide its cores
  }
  set_thread_policy({workers, static_cast<int>(c.threads)});
  ModelRuntime runtime;
  runtime.precision = chosen_precision(c);
  runtime.attention = parse_attention(c.attention);
  runtime.activation_checkpointing = c.activation_checkpointing;
  runtime.fused = c.kernels != "plain" && c.attention == "fused";
  runtime.graphs = c.graphs;
  const bool half = runtime.precision == MatmulPrecision::kBf16;
  if (c.kernels == "fixed") {
    set_ways({});
  } else if (runtime.fused && compute_device().is_cpu()) {
    machine_choices({.fp32_ways = !half, .bf16_ways = half});
  }
  log_debug(cat("compute: ", compute_device().str(), ", ", thread_policy().workers, " workers x ",
                c.threads, " threads, ", precision_name(runtime), ", attention ", c.attention,
                ", kernels ", kernels_name(runtime)));
  return runtime;
}

}  // namespace tiltflow
