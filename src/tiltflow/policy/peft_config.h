// PEFT's adapter_config.json: which options of LoRA are merged correctly here, and how every layer
// is scaled. Options are an allow-list: what changes the mathematics and is not implemented is
// refused by name, also when it is unknown.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

namespace tiltflow {

class PeftConfig {
 public:
  // Throws kBadFile: no adapter configuration, another kind of adapter (peft_type), an option that
  // is not supported.
  explicit PeftConfig(const std::filesystem::path& file);
  // alpha / rank, or alpha / sqrt(rank) with use_rslora; alpha and rank of the layer's pattern, if
  // there is one. `rank` is the tensors'. Throws kBadFile when the configuration names another
  // rank.
  double scale(const std::string& layer, std::int64_t rank) const;

 private:
  template <class Value>
  using Patterns = std::vector<std::pair<std::string, Value>>;  // in the order of the file: the
                                                                // first that fits counts
  bool ends_like(const std::string& layer, const std::string& pattern) const;
  std::string where_;
  double alpha_ = 1;
  std::int64_t rank_ = 0;  // 0: not said
  bool root_ = false;
  Patterns<double> alphas_;
  Patterns<std::int64_t> ranks_;
};

}  // namespace tiltflow
