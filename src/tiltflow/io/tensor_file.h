// Any file of named tensors, recognised by its content: safetensors, sharded safetensors
// (index.json), PyTorch checkpoints.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "tiltflow/io/safetensors.h"

namespace tiltflow {

enum class TensorFormat { kSafetensors, kSharded, kTorch };
// Throws kBadFile when the file cannot be read or is known to be something else (foreign_file).
TensorFormat tensor_format(const std::filesystem::path& path);

struct StateDictFile {
  ParameterSet tensors;
  std::map<std::string, std::string> metadata;
  std::string section;                // which state dict was taken, "" when there is only one
  std::vector<std::string> sections;  // all there were
  std::string prefix;                 // removed from every name
};

// One state dict of any format by the rules of state_dict.h; a choice is logged. `section`: "" to
// let the rules choose. What a checkpoint says beside its tensors becomes metadata: "args.NAME" and
// so on (checkpoint_arguments.h). Shards of an index may be safetensors or PyTorch files. Throws
// kBadFile.
StateDictFile read_state_dict(const std::filesystem::path& path, const std::string& section = "");
// Its tensors and metadata alone; a section that was chosen is the metadata entry "section".
TensorFile read_tensors(const std::filesystem::path& path, const std::string& section = "");

// "<base>.safetensors.index.json" with its shards beside it, each at most `shard_bytes` (one larger
// tensor has a shard of its own). The index is written last: without it there is no model.
void write_sharded_safetensors(const std::filesystem::path& index, const ParameterSet& tensors,
                               double shard_bytes,
                               const std::map<std::string, std::string>& metadata = {});

}  // namespace tiltflow
