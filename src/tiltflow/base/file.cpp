#include "tiltflow/base/file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"

namespace tiltflow {
namespace {

std::string reason() { return std::strerror(errno); }

[[noreturn]] void fail_write(const std::filesystem::path& path, const std::string& action) {
  const int code = errno;
  std::string hint;
  if (code == ENOSPC || code == EDQUOT) hint = "the disk is full; free some space or choose another folder with --out";
  if (code == EACCES || code == EROFS || code == EPERM) hint = "choose a folder you may write to with --out";
  fail(ErrorKind::kFailure, cat("cannot ", action, " ", path.string(), ": ", std::strerror(code)), hint);
}

struct Descriptor {
  int fd;
  ~Descriptor() { if (fd >= 0) ::close(fd); }
};

void write_all(int fd, std::string_view bytes, const std::filesystem::path& path) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail_write(path, "write");
    bytes.remove_prefix(static_cast<std::size_t>(n));
  }
}

}  // namespace

std::string read_file(const std::filesystem::path& path, std::size_t limit) {
  const Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  if (file.fd < 0) fail(ErrorKind::kBadFile, cat("cannot open ", path.string(), ": ", reason()));
  struct stat info {};
  if (::fstat(file.fd, &info) != 0 || S_ISDIR(info.st_mode)) fail(ErrorKind::kBadFile, cat("not a readable file: ", path.string()));
  std::string content;
  char buffer[1 << 16];
  while (true) {
    const ssize_t n = ::read(file.fd, buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail(ErrorKind::kBadFile, cat("cannot read ", path.string(), ": ", reason()));
    if (n == 0) return content;
    if (content.size() + static_cast<std::size_t>(n) > limit) fail(ErrorKind::kBadFile, cat(path.string(), " is larger than the allowed ", limit, " bytes"));
    content.append(buffer, static_cast<std::size_t>(n));
  }
}

void write_file_atomic(const std::filesystem::path& path, std::string_view content) {
  write_file_atomic(path, std::vector<std::string_view>{content});
}

void write_file_atomic(const std::filesystem::path& path, const std::vector<std::string_view>& pieces) {
  const std::filesystem::path temporary = path.string() + cat(".tmp", ::getpid());
  try {
    const Descriptor file{::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644)};
    if (file.fd < 0) fail_write(path, "create");
    for (const std::string_view piece : pieces) write_all(file.fd, piece, path);
    if (::fsync(file.fd) != 0) fail_write(path, "sync");
  } catch (...) {
    ::unlink(temporary.c_str());
    throw;
  }
  if (::rename(temporary.c_str(), path.c_str()) != 0) {
    const int code = errno;
    ::unlink(temporary.c_str());
    errno = code;
    fail_write(path, "rename to");
  }
  sync_directory(path.has_parent_path() ? path.parent_path() : ".");
}

void make_directories(const std::filesystem::path& path) {
  std::error_code code;
  std::filesystem::create_directories(path, code);
  if (code) {
    errno = code.value();
    fail_write(path, "create folder");
  }
}

void sync_directory(const std::filesystem::path& path) {
  const Descriptor folder{::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
  if (folder.fd >= 0) ::fsync(folder.fd);
}

ScratchFolder::ScratchFolder(const std::string& name) {
  std::error_code error;
  std::string pattern = (std::filesystem::temp_directory_path(error) / (name + "-XXXXXX")).string();
  if (error || !::mkdtemp(pattern.data())) fail(ErrorKind::kFailure, cat("no folder for temporary files: ", error ? error.message() : std::strerror(errno)), "set TMPDIR to a folder that can be written");
  path_ = pattern;
}

ScratchFolder::~ScratchFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

MappedFile::MappedFile(const std::filesystem::path& path) {
  const Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  if (file.fd < 0) fail(ErrorKind::kBadFile, cat("cannot open ", path.string(), ": ", reason()));
  struct stat info {};
  if (::fstat(file.fd, &info) != 0 || !S_ISREG(info.st_mode)) fail(ErrorKind::kBadFile, cat("not a regular file: ", path.string()));
  size_ = static_cast<std::size_t>(info.st_size);
  if (size_ == 0) return;
  void* address = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.fd, 0);
  if (address == MAP_FAILED) fail(ErrorKind::kBadFile, cat("cannot map ", path.string(), ": ", reason()));
  data_ = static_cast<const std::byte*>(address);
}

MappedFile::~MappedFile() {
  if (data_) ::munmap(const_cast<std::byte*>(data_), size_);
}

FileLock::FileLock(const std::filesystem::path& path) : fd_(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644)) {
  if (fd_ < 0 || ::flock(fd_, LOCK_EX) != 0) fail(ErrorKind::kFailure, cat("cannot lock ", path.string(), ": ", std::strerror(errno)));
}

FileLock::~FileLock() { ::close(fd_); }

LineAppender::LineAppender(const std::filesystem::path& path)
    : path_(path), fd_(::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644)) {
  if (fd_ < 0) fail_write(path, "open");
}
LineAppender::~LineAppender() { ::close(fd_); }
void LineAppender::write(std::string_view bytes) { write_all(fd_, bytes, path_); }
void LineAppender::sync() { ::fsync(fd_); }

}  // namespace tiltflow
