// A trained velocity network: a VelocityField made of (architecture, weights, adapters), cheap to
// rebuild on other weights.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "tiltflow/flow/velocity_field.h"
#include "tiltflow/nn/attention.h"
#include "tiltflow/tensor/parameters.h"

namespace tiltflow {

// How to run a network; none of it changes what the network is.
struct ModelRuntime {
  MatmulPrecision precision = MatmulPrecision::kFull;
  AttentionBackend attention = AttentionBackend::kMath;
  bool activation_checkpointing =
      false;            // recompute blocks in backward: less memory, about one more forward
  bool fused = false;   // transformer blocks by nn/fused where it applies (fp32 states on CPU or
                        // CUDA); else one operator after another
  bool packing = true;  // fused: weights also in the layout of oneDNN's products; up to two more
                        // copies of them
  bool graphs =
      true;  // on CUDA: calls of one shape are recorded and launched at once (nn/recorded)
};

// What a network is: family ("sit", "mlp") and constructor arguments by their official names.
struct ModelSpec {
  std::string family;
  std::map<std::string, std::string> args;
};

class VelocityModel : public VelocityField {
 public:
  virtual const ModelSpec& spec() const = 0;
  virtual const ParameterSet& parameters() const = 0;
  virtual std::vector<std::int64_t> sample_shape() const = 0;  // without the batch dimension
  virtual std::int64_t classes()
      const = 0;  // 0: unconditional; labels are [0, classes], classes = null
  virtual std::vector<std::string> linear_layers() const = 0;  // names that adapters may target
  virtual bool is_buffer(const std::string& name) const = 0;   // stored but never trained
  // The same architecture on other tensors.
  virtual std::unique_ptr<VelocityModel> rebind(ParameterSet parameters,
                                                AdapterSet adapters) const = 0;
};

}  // namespace tiltflow
