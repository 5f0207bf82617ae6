// Checkpoint folders of a run: step-000100 and the like, complete once they hold DONE. No other
// name is read or deleted.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "tiltflow/tensor/parameters.h"

namespace tiltflow {

struct Checkpoint {
  std::int64_t step = 0;                      // steps completed
  std::map<std::string, ParameterSet> parts;  // "weights", "average", "optimizer", "objective"
  bool followed = true;  // what follows the step (evaluation, validation) is done too
};

// "step-000100"; more digits from a million steps on.
std::string step_name(std::int64_t step);

struct CheckpointFolder {
  std::int64_t step = 0;
  std::filesystem::path path;
};
// Complete ones in `folder`, oldest first.
std::vector<CheckpointFolder> complete_checkpoints(const std::filesystem::path& folder);

// Throws kBadFile when a file is damaged, cut off or missing, or when its state names another step.
Checkpoint read_checkpoint(const CheckpointFolder& folder);
// Whether `folder` has this step already, in this state.
bool holds(const std::filesystem::path& folder, const Checkpoint& checkpoint);
// Appears under its name complete or not at all.
void write_checkpoint(const std::filesystem::path& folder, const Checkpoint& checkpoint);

// Moves a checkpoint that cannot be read to "damaged-step-000100", out of the way of the one that
// will be written again.
void set_aside(const CheckpointFolder& folder);

}  // namespace tiltflow
