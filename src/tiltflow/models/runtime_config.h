// The [compute] section: how networks are run on this machine.
#pragma once

#include <string>

#include "tiltflow/config/fields.h"
#include "tiltflow/models/velocity_model.h"

namespace tiltflow {

struct ComputeConfig {
  std::int64_t workers = 0;    // independent pieces of work at a time; 0: one per core
  std::int64_t threads = 1;    // libtorch threads inside each piece
  std::string device = "cpu";  // where networks compute, see tensor/device
  std::string precision = "fp32";
  std::string attention = "fused";
  std::string kernels = "fused";
  bool graphs = true;  // CUDA: calls recorded as CUDA graphs
  bool activation_checkpointing = false;
  double memory_gb = 0;  // what a memory plan may use; 0: 80 % of what is free
};
void bind(Fields& f, ComputeConfig& c);
// "plain", "cuda", or the instruction set of the fused kernels.
std::string kernels_name(const ModelRuntime& runtime);
// Sets the thread policy and the device of the process and returns the network settings.
ModelRuntime apply(const ComputeConfig& config);

}  // namespace tiltflow
