#include "tiltflow/base/file_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <ctime>
#include <thread>
#include <utility>

#include "tiltflow/base/error.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/log.h"
#include "tiltflow/base/signals.h"
#include "tiltflow/base/strings.h"

namespace tiltflow {
namespace {

namespace fs = std::filesystem;

enum class Attempt { kHeld, kBusy, kGone, kNoLocks };

struct Opened {
  Attempt attempt;
  int fd = -1;  // of a held lock
};

bool without_locks(int code) {
  return code == ENOSYS || code == ENOLCK || code == EOPNOTSUPP || code == EINVAL || code == EROFS;
}

void warn_without_locks(const fs::path& path, int code) {
  log_warn(cat("this file system has no file locks (", path.string(), ": ", std::strerror(code),
               "): see to it that no other process writes to the same folder"));
}

// The owner removes the file while it holds the lock, so a lock counts only on the file that still
// has the name.
bool has_name(int fd, const fs::path& path) {
  struct stat held{};
  struct stat named{};
  return ::fstat(fd, &held) == 0 && ::stat(path.c_str(), &named) == 0 &&
         held.st_dev == named.st_dev && held.st_ino == named.st_ino;
}

std::string owner_text() {
  char host[256] = "unknown host";
  ::gethostname(host, sizeof host - 1);
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  ::gmtime_r(&now, &parts);
  char date[64];
  std::strftime(date, sizeof date, "%Y-%m-%d %H:%M:%S UTC", &parts);
  return cat("process ", ::getpid(), " on ", host, ", since ", date, "\n");
}

// The text is for people: a full disk must not refuse the lock.
void write_owner(int fd) {
  const std::string text = owner_text();
  if (::ftruncate(fd, 0) != 0) return;
  [[maybe_unused]] const ssize_t written = ::pwrite(fd, text.data(), text.size(), 0);
}

Opened attempt(const fs::path& path) {
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (fd < 0) {
    const int code = errno;
    if (!without_locks(code)) {
      fail(ErrorKind::kFailure,
           cat("cannot open the lock file ", path.string(), ": ", std::strerror(code)),
           "choose a folder you may write to with --out");
    }
    warn_without_locks(path, code);
    return {Attempt::kNoLocks};
  }
  if (::flock(fd, LOCK_EX | LOCK_NB) == 0) {
    if (has_name(fd, path)) {
      write_owner(fd);
      return {Attempt::kHeld, fd};
    }
    ::close(fd);
    return {Attempt::kGone};
  }
  const int code = errno;
  if (without_locks(code)) {
    warn_without_locks(path, code);
    ::unlink(path.c_str());
    ::close(fd);
    return {Attempt::kNoLocks};
  }
  ::close(fd);
  if (code != EWOULDBLOCK && code != EINTR) {
    fail(ErrorKind::kFailure, cat("cannot lock ", path.string(), ": ", std::strerror(code)));
  }
  return {code == EINTR ? Attempt::kGone : Attempt::kBusy};
}

// Polls, because a wait in the kernel would not hear a stop.
int wait_for(const fs::path& path) {
  while (true) {
    const Opened opened = attempt(path);
    if (opened.attempt == Attempt::kHeld || opened.attempt == Attempt::kNoLocks) return opened.fd;
    if (stop_signal() != 0) {
      fail(ErrorKind::kStopped,
           cat("stopped while waiting for ", path.string(), ", held by ", lock_owner(path)));
    }
    if (opened.attempt == Attempt::kBusy) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
  }
}

}  // namespace

ProcessLock::ProcessLock(fs::path path, int fd) : path_(std::move(path)), fd_(fd) {}

ProcessLock::ProcessLock(const fs::path& path) : ProcessLock(path, wait_for(path)) {}

std::optional<ProcessLock> ProcessLock::try_hold(const fs::path& path) {
  while (true) {
    const Opened opened = attempt(path);
    if (opened.attempt == Attempt::kBusy) return std::nullopt;
    if (opened.attempt != Attempt::kGone) return ProcessLock(path, opened.fd);
  }
}

ProcessLock::ProcessLock(ProcessLock&& other) noexcept
    : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)) {}

ProcessLock::~ProcessLock() {
  if (fd_ < 0) return;
  if (has_name(fd_, path_)) ::unlink(path_.c_str());
  ::close(fd_);
}

std::string lock_owner(const fs::path& path) {
  try {
    const std::string text = read_file(path, 4096);
    if (!text.empty()) return text.substr(0, text.find('\n'));
  } catch (const Error&) {
    // Given back in this moment.
  }
  return "another process";
}

}  // namespace tiltflow
