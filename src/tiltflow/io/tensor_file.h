// Any file of named tensors, recognised by its content: safetensors, sharded safetensors (index.json), PyTorch checkpoints.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "tiltflow/io/safetensors.h"

namespace tiltflow {

enum class TensorFormat { kSafetensors, kShardedSafetensors, kTorch };
// Throws kBadFile when the file cannot be read. Everything that is nothing else counts as safetensors, whose reader complains.
TensorFormat tensor_format(const std::filesystem::path& path);

// `section`: which state dict of a PyTorch checkpoint ("ema", "model", ...). Empty: the bare state dict, else "ema", "model",
// "state_dict" or the first there is, in this order; the choice is logged. Other formats have no sections. A trainer's `args` become
// metadata "args.NAME". Throws kBadFile.
TensorFile read_tensors(const std::filesystem::path& path, const std::string& section = "");

// "<base>.safetensors.index.json" with its shards beside it, each at most `shard_bytes` (one larger tensor has a shard of its own).
// The index is written last: without it there is no model.
void write_sharded_safetensors(const std::filesystem::path& index, const ParameterSet& tensors, double shard_bytes,
                               const std::map<std::string, std::string>& metadata = {});

}  // namespace tiltflow
