#include "tiltflow/base/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "tiltflow/base/descriptor.h"
#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"

namespace tiltflow {
namespace {

std::string reason() { return std::strerror(errno); }

}  // namespace

std::string read_file(const std::filesystem::path& path, std::size_t limit) {
  const Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  if (file.fd < 0) fail(ErrorKind::kBadFile, cat("cannot open ", path.string(), ": ", reason()));
  struct stat info{};
  if (::fstat(file.fd, &info) != 0 || S_ISDIR(info.st_mode)) {
    fail(ErrorKind::kBadFile, cat("not a readable file: ", path.string()));
  }
  std::string content;
  char buffer[1 << 16];
  while (true) {
    const ssize_t n = ::read(file.fd, buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail(ErrorKind::kBadFile, cat("cannot read ", path.string(), ": ", reason()));
    if (n == 0) return content;
    if (content.size() + static_cast<std::size_t>(n) > limit) {
      fail(ErrorKind::kBadFile,
           cat(path.string(), " is larger than the allowed ", limit, " bytes"));
    }
    content.append(buffer, static_cast<std::size_t>(n));
  }
}

void make_directories(const std::filesystem::path& path) {
  std::error_code code;
  std::filesystem::create_directories(path, code);
  if (code) {
    errno = code.value();
    fail_write(path, "create folder");
  }
}

ScratchFolder::ScratchFolder(const std::string& name) {
  std::error_code error;
  std::string pattern = (std::filesystem::temp_directory_path(error) / (name + "-XXXXXX")).string();
  if (error || !::mkdtemp(pattern.data())) {
    fail(ErrorKind::kFailure,
         cat("no folder for temporary files: ", error ? error.message() : std::strerror(errno)),
         "set TMPDIR to a folder that can be written");
  }
  path_ = pattern;
}

ScratchFolder::~ScratchFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

MappedFile::MappedFile(const std::filesystem::path& path) {
  const Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  if (file.fd < 0) fail(ErrorKind::kBadFile, cat("cannot open ", path.string(), ": ", reason()));
  struct stat info{};
  if (::fstat(file.fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    fail(ErrorKind::kBadFile, cat("not a regular file: ", path.string()));
  }
  size_ = static_cast<std::size_t>(info.st_size);
  if (size_ == 0) return;
  void* address = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.fd, 0);
  if (address == MAP_FAILED) {
    fail(ErrorKind::kBadFile, cat("cannot map ", path.string(), ": ", reason()));
  }
  data_ = static_cast<const std::byte*>(address);
}

MappedFile::~MappedFile() {
  if (data_) ::munmap(const_cast<std::byte*>(data_), size_);
}

LineAppender::LineAppender(const std::filesystem::path& path)
    : path_(path), fd_(::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666)) {
  if (fd_ < 0) fail_write(path, "open");
}
LineAppender::~LineAppender() { ::close(fd_); }
void LineAppender::write(std::string_view bytes) { write_all(fd_, bytes, path_); }
void LineAppender::sync() {
  if (!sync_descriptor(fd_)) fail_write(path_, "sync");
}

}  // namespace tiltflow
