#include "tiltflow/base/descriptor.h"

#include <poll.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>

#include "tiltflow/base/error.h"
#include "tiltflow/base/log.h"
#include "tiltflow/base/strings.h"

namespace tiltflow {

void fail_write(const std::filesystem::path& path, const std::string& action) {
  const int code = errno;
  std::string hint;
  if (code == ENOSPC || code == EDQUOT) {
    hint = "the disk is full; free some space or choose another folder with --out";
  }
  if (code == EFBIG) hint = "larger than the file system or `ulimit -f` allows";
  if (code == EACCES || code == EROFS || code == EPERM) {
    hint = "choose a folder you may write to with --out";
  }
  if (code == ENOENT) hint = "the folder must exist";
  if (code == EISDIR) hint = "name a file, not a folder";
  fail(ErrorKind::kFailure, cat("cannot ", action, " ", path.string(), ": ", std::strerror(code)),
       hint);
}

Descriptor::~Descriptor() {
  if (fd >= 0) ::close(fd);
}

void write_all(int fd, std::string_view bytes, const std::filesystem::path& path) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) {  // a pipe that somebody has made non-blocking
      pollfd ready{fd, POLLOUT, 0};
      ::poll(&ready, 1, 100);
      continue;
    }
    if (n == 0) errno = ENOSPC;
    if (n <= 0) fail_write(path, "write");
    bytes.remove_prefix(static_cast<std::size_t>(n));
  }
}

bool sync_descriptor(int fd) {
  while (::fsync(fd) != 0) {
    if (errno == EINTR) continue;
    if (errno != EINVAL && errno != ENOSYS && errno != EOPNOTSUPP) return false;
    static std::atomic<bool> warned{false};
    if (!warned.exchange(true)) {
      log_warn(cat("this file system cannot sync files to disk (", std::strerror(errno),
                   "): a power failure may lose what was just written"));
    }
    return true;
  }
  return true;
}

}  // namespace tiltflow
