// A file that one process at a time holds. It belongs to the process, not to the file's existence:
// a killed owner leaves no lock behind.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

namespace tiltflow {

// Exclusive among processes and among objects of one process; given back with the object or when
// the process dies. The file is created when missing, says who holds it, and is removed by its
// owner. File systems without locks (ENOSYS, ENOLCK, EOPNOTSUPP, read-only ones): one warning, and
// the object guards nothing.
class ProcessLock {
 public:
  // Waits until the lock is free. Throws kFailure when the file cannot be opened, kStopped when a
  // signal ends the wait.
  explicit ProcessLock(const std::filesystem::path& path);
  // Does not wait: nothing when somebody else holds the lock; lock_owner(path) then says who.
  static std::optional<ProcessLock> try_hold(const std::filesystem::path& path);

  ProcessLock(ProcessLock&& other) noexcept;
  ProcessLock& operator=(ProcessLock&&) = delete;
  ProcessLock(const ProcessLock&) = delete;
  ~ProcessLock();

  // False on a file system without locks.
  bool guards() const { return fd_ >= 0; }

 private:
  ProcessLock(std::filesystem::path path, int fd);
  std::filesystem::path path_;
  int fd_ = -1;
};

// "process 123 on HOST, since 2026-11-28 01:10:20 UTC" as the holder wrote it; "another process"
// when the file says nothing.
std::string lock_owner(const std::filesystem::path& path);

}  // namespace tiltflow
