// SiT's configuration record: official constructor arguments, official sizes, and what a state dict
// reveals of them.
#pragma once

#include <map>
#include <string>

#include "tiltflow/tensor/parameters.h"

namespace tiltflow {

struct SitConfig {
  std::int64_t input_size = 32;
  std::int64_t patch_size = 2;
  std::int64_t in_channels = 4;
  std::int64_t hidden_size = 1152;
  std::int64_t depth = 28;
  std::int64_t num_heads = 16;
  double mlp_ratio = 4;
  std::int64_t num_classes = 1000;
  bool null_class =
      true;  // the label table has one more row; its index num_classes means "no label"
  bool learn_sigma = true;  // twice the output channels, second half ignored

  std::int64_t tokens() const { return (input_size / patch_size) * (input_size / patch_size); }
  std::int64_t out_channels() const { return learn_sigma ? 2 * in_channels : in_channels; }
};

// Throws kConfig when sizes do not divide or are not positive.
void validate(const SitConfig& config);

// "SiT-{S,B,L,XL}/{2,4,8}" -> width, depth, heads and patch; the rest stays at the official
// defaults. Throws kConfig.
SitConfig sit_preset(const std::string& name);

// Arguments: a preset under "size" and/or input_size, patch_size, in_channels, hidden_size, depth,
// num_heads, mlp_ratio, num_classes, learn_sigma, class_dropout_prob (0 removes the null class).
// Unknown names and bad values throw kConfig.
SitConfig sit_config_from_args(const std::map<std::string, std::string>& args,
                               SitConfig start = {});
std::map<std::string, std::string> to_args(const SitConfig& config);

// "SiT-XL/2" with whatever separators and case -> its official spelling; "" for every other text.
std::string official_sit_size(const std::string& text);

// What the tensors show: everything but the number of heads, which is that of the official size
// with the same width, or 0. Throws kBadFile for tensors that are no SiT's.
SitConfig shown_sit_config(const ParameterSet& tensors);

// Everything but the number of heads shows in the tensors. `args` (from metadata or the user) wins
// over what is inferred; without num_heads the official size with that width is assumed, else
// kBadFile asks for it.
SitConfig infer_sit_config(const ParameterSet& tensors,
                           const std::map<std::string, std::string>& args);
bool looks_like_sit(const ParameterSet& tensors);

}  // namespace tiltflow
