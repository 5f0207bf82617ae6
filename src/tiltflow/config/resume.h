// What a run may change when it is resumed, and what it is held to.
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "tiltflow/base/inputs.h"
#include "tiltflow/config/differences.h"

namespace tiltflow {

// A key that may differ from the stored configuration. Files that such keys name may differ too.
struct FreeKey {
  std::string pattern;  // '*' and '?'
  std::string meaning;  // of the change, shown when it happens
  bool read = true;     // false: of a section that is not read here; its files do not count
};
using FreeKeys = std::vector<FreeKey>;

const FreeKeys& machine_keys();   // compute.*: how a machine computes is no part of a run
const FreeKeys& finetune_keys();  // what `finetune --resume` may change
FreeKeys pretrain_keys(const std::string& kind);
FreeKeys sft_keys(const std::string& batch_norm);
const FreeKeys& em_keys();
const FreeKeys& assign_keys();

// The meaning of a change of `key`, or null when it may not change.
const FreeKey* find_free(const FreeKeys& keys, const std::string& key);
// Fingerprints of the files that are read.
Inputs read_inputs_of(const std::vector<InputPath>& paths, const FreeKeys& keys);

// What a run is made of: its identity is `config` and the content of `inputs`, except for `free`
// keys.
struct RunStart {
  std::string config;  // resolved, a TOML document
  Inputs inputs;
  bool resume = false;
  bool accept_inputs = false;  // go on with inputs that changed, and record them
  FreeKeys free = {};
  // The stored configuration as this version reads it: keys that it lacks get their defaults.
  std::function<std::string(const std::filesystem::path& file)> reread = {};
};

// Where a folder keeps what it was started with.
struct StoredStart {
  std::string what;              // for messages: "the run in DIR"
  std::filesystem::path config;  // TOML
  std::filesystem::path inputs;  // JSON of base/inputs
};
// Throws kConfig naming every key that differs and is not free, and every input whose content
// changed. Returns the free changes.
std::vector<KeyChange> require_same_start(const StoredStart& stored, const RunStart& start);
// Writes both, and says which free keys changed and what that means.
void store_start(const StoredStart& stored, const RunStart& start,
                 const std::vector<KeyChange>& changes);

}  // namespace tiltflow
