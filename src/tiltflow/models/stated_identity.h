// What the metadata of a model's file says about the flow, wherever a trainer has put it: our own
// entries (tiltflow.path), the names of the official SiT trainer in any container (args.path_type,
// config.transport.path_type, hyper_parameters.num_heads), values of JSON text. Names count, not
// containers: the last part of a dotted key decides. Constructor arguments inside parts that
// describe other things (vae, optimizer, data, text_encoder, ...) do not count.
#pragma once

#include <map>
#include <string>
#include <vector>

namespace tiltflow {

struct Stated {
  std::string value;    // in our words: "gvp", "noise", "6"; "" = nothing was said
  std::string source;   // where it was said: "args.path_type = 'GVP'"
  std::string problem;  // not understood, or two places contradict each other; "" = nothing wrong
};

struct StatedIdentity {
  Stated path, prediction;
  // Constructor arguments by SiT's names, of trainers alone; `model` (SiT-XL/2) and `image_size` as
  // they were given.
  std::map<std::string, Stated> args;
  // Switches of other architectures that are on: "args.qk_norm = True".
  std::vector<std::string> unsupported;
};

// Whether a metadata entry of this key is one that stated_identity reads.
bool states_identity(const std::string& key);
// The entries that do not state it, in their own words; of JSON texts that do, the other values
// under dotted keys.
std::map<std::string, std::string> without_identity(
    const std::map<std::string, std::string>& metadata);
// YAML, command lines and other texts are searched for path and prediction when no named value says
// them.
StatedIdentity stated_identity(const std::map<std::string, std::string>& metadata);

}  // namespace tiltflow
