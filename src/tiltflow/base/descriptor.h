// Open files by their numbers, for code that writes.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

namespace tiltflow {

// Closed with the object; below zero: none.
struct Descriptor {
  int fd;
  explicit Descriptor(int opened) : fd(opened) {}
  ~Descriptor();
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
};

// Throws kFailure with the reason in errno and a hint: "cannot ACTION PATH: No space left on
// device".
[[noreturn]] void fail_write(const std::filesystem::path& path, const std::string& action);
// All of it, however often the system takes less. Throws as fail_write.
void write_all(int fd, std::string_view bytes, const std::filesystem::path& path);
// fsync; a file system that has none (EINVAL, ENOSYS, EOPNOTSUPP) is warned about once. False with
// errno set when the disk reports an error.
bool sync_descriptor(int fd);

}  // namespace tiltflow
