// Whole files that appear complete or not at all (declared in file.h). Symbolic links are followed
// and stay links; devices, pipes and /dev/stdout are written through; the mode of an existing file
// is kept, a new one follows the umask; a file that is a mount of its own is overwritten in place.
// An error leaves the old file and nothing else.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <optional>
#include <set>

#include "tiltflow/base/descriptor.h"
#include "tiltflow/base/error.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/base/temporary_file.h"

namespace tiltflow {
namespace {

namespace fs = std::filesystem;

using Pieces = std::vector<std::string_view>;

void write_pieces(int fd, const Pieces& pieces, const fs::path& path) {
  for (const std::string_view piece : pieces) write_all(fd, piece, path);
}

// Where the content goes in the end: symbolic links are followed, so that a link stays a link.
struct Destination {
  fs::path path;
  std::optional<struct stat> there;  // nothing: a new file
  std::optional<int> descriptor;     // /dev/stdout, /dev/fd/N: an open file of this process
};

// N of /proc/self/fd/N and of the names that lead there.
std::optional<int> descriptor_of(const fs::path& path) {
  const std::string text = path.string();
  for (const std::string& folder : {std::string("/proc/self/fd/"),
                                    cat("/proc/", ::getpid(), "/fd/"), std::string("/dev/fd/")}) {
    if (!starts_with(text, folder)) continue;
    char* end = nullptr;
    const long number = std::strtol(text.c_str() + folder.size(), &end, 10);
    if (*end == '\0' && end != text.c_str() + folder.size()) return static_cast<int>(number);
  }
  return std::nullopt;
}

Destination destination_of(const fs::path& asked) {
  constexpr int kMostLinks = 40;  // the kernel's own limit
  Destination out{asked, std::nullopt, std::nullopt};
  for (int links = 0;; ++links) {
    out.descriptor = descriptor_of(out.path);
    if (out.descriptor) return out;
    struct stat info{};
    if (::lstat(out.path.c_str(), &info) != 0) {
      if (errno != ENOENT) fail_write(asked, "create");
      return out;
    }
    if (!S_ISLNK(info.st_mode)) {
      out.there = info;
      return out;
    }
    errno = ELOOP;
    if (links == kMostLinks) fail_write(asked, "follow");
    std::error_code code;
    const fs::path next = fs::read_symlink(out.path, code);
    errno = code.value();
    if (code) fail_write(asked, "follow");
    out.path = next.is_absolute() ? next : out.path.parent_path() / next;
  }
}

void write_in_place(const fs::path& path, const Pieces& pieces, int flags) {
  const Descriptor file{::open(path.c_str(), O_WRONLY | O_CLOEXEC | flags)};
  if (file.fd < 0) fail_write(path, "open");
  write_pieces(file.fd, pieces, path);
}

// Mode and owner of the file that is replaced. The owner can be kept by root alone; without that
// the file is simply the writer's.
void keep_attributes(int fd, const struct stat& old) {
  [[maybe_unused]] const int owner = ::fchown(fd, old.st_uid, old.st_gid);
  ::fchmod(fd, old.st_mode & 07777);
}

// Once per folder and process: a scan for every file would be felt in folders of many pictures.
void tidy(const fs::path& folder) {
  static std::mutex mutex;
  static std::set<fs::path> seen;
  const std::lock_guard lock(mutex);
  if (seen.insert(folder).second) remove_leftover_files(folder);
}

void replace_file(const Destination& to, const fs::path& asked, const Pieces& pieces) {
  const fs::path folder = to.path.parent_path();
  tidy(folder);
  if (to.there && ::access(to.path.c_str(), W_OK) != 0) fail_write(asked, "write");
  TemporaryFile file(folder);
  errno = file.open(0666);
  if (errno != 0) fail_write(asked, "create");
  if (to.there) keep_attributes(file.fd(), *to.there);
  write_pieces(file.fd(), pieces, asked);
  if (!sync_descriptor(file.fd())) fail_write(asked, "sync");
  errno = file.close();
  if (errno != 0) fail_write(asked, "write");
  const int code = file.rename_to(to.path.filename().string());
  if (code == EBUSY && to.there) {  // a single file mounted into a container
    write_in_place(to.path, pieces, O_TRUNC);
    return;
  }
  errno = code;
  if (code != 0) fail_write(asked, "rename to");
  sync_directory(folder);
}

}  // namespace

void write_file_atomic(const fs::path& path, std::string_view content) {
  write_file_atomic(path, Pieces{content});
}

void write_file_atomic(const fs::path& path, const Pieces& pieces) {
  const Destination to = destination_of(path);
  if (to.descriptor) {
    write_pieces(*to.descriptor, pieces, path);
    return;
  }
  errno = EISDIR;
  if (!to.path.has_filename() || (to.there && S_ISDIR(to.there->st_mode))) {
    fail_write(path, "write");
  }
  if (to.there && !S_ISREG(to.there->st_mode)) {
    write_in_place(to.path, pieces, 0);
    return;
  }
  replace_file(to, path, pieces);
}

void sync_directory(const fs::path& path) {
  const Descriptor folder{
      ::open(path.empty() ? "." : path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
  if (folder.fd >= 0) {
    ::fsync(folder.fd);  // the file itself is safe; many file systems cannot sync folders
  }
}

}  // namespace tiltflow
