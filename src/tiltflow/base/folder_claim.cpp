#include "tiltflow/base/folder_claim.h"

#include <utility>
#include <vector>

#include "tiltflow/base/error.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/hash.h"
#include "tiltflow/base/strings.h"

namespace tiltflow {
namespace {

namespace fs = std::filesystem;

const std::string kWhole = ".lock";
const std::string kEntry = ".lock-entry";  // held while somebody looks at the other claims
const std::string kLane = ".lock-of-";
constexpr std::size_t kLongestName = 200;  // file systems end at 255 bytes

[[noreturn]] void refuse(const fs::path& claimed, const fs::path& lock) {
  fail(ErrorKind::kFailure,
       cat("another process writes to ", claimed.string(), ": ", lock_owner(lock)),
       "wait until it has ended, stop it, or choose another --out");
}

ProcessLock hold(const fs::path& claimed, const fs::path& lock) {
  std::optional<ProcessLock> held = ProcessLock::try_hold(lock);
  if (!held) refuse(claimed, lock);
  return std::move(*held);
}

std::shared_ptr<const void> removed_when_empty(const fs::path& folder) {
  return {nullptr, [folder](const void*) {
            std::error_code not_empty;
            fs::remove(folder, not_empty);
          }};
}

}  // namespace

FolderClaim::FolderClaim(const fs::path& folder, const std::string& lane) {
  if (!fs::exists(folder)) made_ = removed_when_empty(folder);
  make_directories(folder);
  const ProcessLock entry(folder / kEntry);
  if (!lane.empty()) {
    hold(folder, folder / kWhole);  // given back at once: it only must be free
    lock_.emplace(hold(folder, folder / (kLane + lane)));
    return;
  }
  std::vector<fs::path> lanes;
  for (const auto& file : fs::directory_iterator(folder)) {
    if (starts_with(file.path().filename().string(), kLane)) lanes.push_back(file.path());
  }
  for (const fs::path& each : lanes) hold(folder, each);  // a dead owner's file goes away
  lock_.emplace(hold(folder, folder / kWhole));
}

FolderClaim FolderClaim::of_file(const fs::path& file) {
  if (fs::exists(file) && !fs::is_regular_file(file)) return FolderClaim();  // a device or a pipe
  const std::string name = file.filename().string();
  const std::string shortened = name.size() < kLongestName ? name : cat(fnv1a(name));
  return FolderClaim(hold(file, file.parent_path() / cat(kWhole, "-", shortened)));
}

bool is_claim(const fs::path& entry) { return starts_with(entry.filename().string(), kWhole); }

}  // namespace tiltflow
