// Files under a temporary name until they are complete. The names are short and say which process
// made them, so that what a killed process leaves can be told from everybody else's files.
#pragma once

#include <sys/types.h>

#include <filesystem>
#include <string>

namespace tiltflow {

// A new file in `folder`; gone with the object unless it was renamed. errno-style: the members
// answer 0 or an error number.
class TemporaryFile {
 public:
  explicit TemporaryFile(const std::filesystem::path& folder);
  ~TemporaryFile();
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  int open(mode_t mode);
  int fd() const { return fd_; }
  int close();                             // late errors of network file systems come here
  int rename_to(const std::string& name);  // within the folder, replacing what is there

 private:
  std::filesystem::path folder_;
  std::string name_;
  int folder_fd_ = -1;
  int fd_ = -1;
  int slot_ = -1;
};

// Removes the temporary files of this process that are not renamed yet. Safe in signal handlers;
// only for a process that ends now.
void remove_temporary_files() noexcept;

// Removes the temporary files in `folder` whose process is surely gone: made on this machine since
// it was started, among the same process numbers, by this user, and no such process is there. Never
// throws.
void remove_leftover_files(const std::filesystem::path& folder) noexcept;

}  // namespace tiltflow
