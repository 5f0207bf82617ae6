// Two configurations, key by key.
#pragma once

#include <string>
#include <vector>

namespace tiltflow {

struct KeyChange {
  std::string key;          // "train.steps", "reward[0].scale"
  std::string before, now;  // TOML text; "nothing" where the key is absent
};
// Values are compared, not their spelling. Throws kBadFile for text that is not TOML.
std::vector<KeyChange> config_differences(const std::string& before, const std::string& now);

}  // namespace tiltflow
