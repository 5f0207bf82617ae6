#include "tiltflow/base/temporary_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string_view>
#include <utility>

#include "tiltflow/base/hash.h"
#include "tiltflow/base/strings.h"

namespace tiltflow {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPrefix = ".tiltflow-";
constexpr std::string_view kSuffix = ".tmp";

// Paths that a signal handler may remove: no allocation, no lock.
struct Slot {
  enum State { kFree, kFilling, kUsed };
  std::atomic<int> state{kFree};
  char path[4096];
};
std::array<Slot, 64> g_slots;

int take_slot(const std::string& path) {
  if (path.size() >= sizeof(Slot::path)) return -1;
  for (std::size_t i = 0; i < g_slots.size(); ++i) {
    int expected = Slot::kFree;
    if (!g_slots[i].state.compare_exchange_strong(expected, Slot::kFilling)) continue;
    std::memcpy(g_slots[i].path, path.c_str(), path.size() + 1);
    g_slots[i].state = Slot::kUsed;
    return static_cast<int>(i);
  }
  return -1;
}

void free_slot(int slot) {
  if (slot >= 0) g_slots[static_cast<std::size_t>(slot)].state = Slot::kFree;
}

// Names this start of this machine and the process numbers seen here (containers have their own).
// Empty when the system does not say.
std::string machine_mark() {
  std::string boot;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> boot;
  struct stat space{};
  if (boot.empty() || ::stat("/proc/self/ns/pid", &space) != 0) return "";
  char text[16];
  std::snprintf(text, sizeof text, "%08x", crc32c(cat(boot, " ", space.st_ino)));
  return text;
}

std::string new_name() {
  static const std::string mark = machine_mark();
  static std::atomic<unsigned> count{0};
  return cat(kPrefix, mark.empty() ? "unknown" : mark, "-", ::getpid(), "-", count++, kSuffix);
}

// The process number in a name of this machine; 0: not surely ours.
pid_t maker_of(const std::string& name, const std::string& mark) {
  const std::string begin = cat(kPrefix, mark, "-");
  if (mark.empty() || !starts_with(name, begin) || !ends_with(name, kSuffix)) return 0;
  char* end = nullptr;
  const long pid = std::strtol(name.c_str() + begin.size(), &end, 10);
  return *end == '-' && pid > 0 ? static_cast<pid_t>(pid) : 0;
}

}  // namespace

TemporaryFile::TemporaryFile(const fs::path& folder)
    : folder_(folder.empty() ? fs::path(".") : folder) {}

TemporaryFile::~TemporaryFile() {
  if (fd_ >= 0) ::close(fd_);
  if (!name_.empty()) ::unlinkat(folder_fd_, name_.c_str(), 0);
  if (folder_fd_ >= 0) ::close(folder_fd_);
  free_slot(slot_);
}

int TemporaryFile::open(mode_t mode) {
  folder_fd_ = ::open(folder_.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC);
  if (folder_fd_ < 0) return errno;
  for (int attempt = 0; attempt < 1000; ++attempt) {
    const std::string name = new_name();
    fd_ = ::openat(folder_fd_, name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
    if (fd_ >= 0) {
      name_ = name;
      slot_ = take_slot((folder_ / name).string());
      return 0;
    }
    if (errno != EEXIST) {
      return errno;  // another machine may have made the same name in a shared folder
    }
  }
  return EEXIST;
}

int TemporaryFile::close() {
  const int fd = std::exchange(fd_, -1);
  return ::close(fd) == 0 || errno == EINTR ? 0 : errno;
}

int TemporaryFile::rename_to(const std::string& name) {
  if (::renameat(folder_fd_, name_.c_str(), folder_fd_, name.c_str()) != 0) return errno;
  name_.clear();
  return 0;
}

void remove_temporary_files() noexcept {
  for (Slot& slot : g_slots) {
    if (slot.state == Slot::kUsed) ::unlink(slot.path);
  }
}

void remove_leftover_files(const fs::path& folder) noexcept {
  static const std::string mark = machine_mark();
  std::error_code ignored;
  fs::directory_iterator entry(folder.empty() ? fs::path(".") : folder, ignored);
  for (; !ignored && entry != fs::directory_iterator(); entry.increment(ignored)) {
    const pid_t maker = maker_of(entry->path().filename().string(), mark);
    if (maker == 0 || ::kill(maker, 0) == 0 || errno != ESRCH) continue;
    struct stat info{};
    if (::lstat(entry->path().c_str(), &info) == 0 && S_ISREG(info.st_mode) &&
        info.st_uid == ::geteuid()) {
      ::unlink(entry->path().c_str());
    }
  }
}

}  // namespace tiltflow
