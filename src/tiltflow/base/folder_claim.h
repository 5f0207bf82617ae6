// The right to write to a folder: one process at a time, or one process a lane (the shards of a
// call).
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "tiltflow/base/file_lock.h"

namespace tiltflow {

class FolderClaim {
 public:
  // Makes the folder and claims it until the object goes. `lane` "" is the whole folder; a lane
  // shares it with other lanes. A dead owner's claim does not count. Throws kFailure, saying who
  // writes there and since when.
  explicit FolderClaim(const std::filesystem::path& folder, const std::string& lane = "");
  // Claims a file that is about to be written, without touching it.
  static FolderClaim of_file(const std::filesystem::path& file);

 private:
  FolderClaim() = default;
  explicit FolderClaim(ProcessLock lock) : lock_(std::move(lock)) {}
  std::shared_ptr<const void> made_;  // removes a folder that was made for nothing, after the lock
  std::optional<ProcessLock> lock_;
};

// Whether a folder's entry belongs to claims: to be passed over when somebody asks whether the
// folder is empty.
bool is_claim(const std::filesystem::path& entry);

}  // namespace tiltflow
