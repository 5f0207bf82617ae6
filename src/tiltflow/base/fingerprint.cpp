#include "tiltflow/base/fingerprint.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <map>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "tiltflow/base/error.h"
#include "tiltflow/base/file.h"
#include "tiltflow/base/progress.h"
#include "tiltflow/base/sha256.h"
#include "tiltflow/base/signals.h"
#include "tiltflow/base/strings.h"

namespace tiltflow {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr std::uint64_t kRemembered = 64 << 20;  // bytes from which sums are kept on disk
constexpr std::uint64_t kShown = 2'000'000'000;  // bytes from which progress is shown
constexpr double kSettled = 2;  // seconds after which a date tells two states of a file apart

struct Listed {
  fs::path path;
  std::string name;
  struct stat info{};
};

bool is_hidden(const fs::path& path) { return starts_with(path.filename().string(), "."); }

bool is_weight_file(const fs::path& path) {
  static const std::set<std::string> known{".safetensors", ".json", ".bin", ".pt", ".pth", ".ckpt"};
  return known.count(path.extension().string()) > 0;
}

void add_file(const fs::path& path, const std::string& name, std::vector<Listed>& out) {
  Listed one{path, name, {}};
  if (::stat(path.c_str(), &one.info) != 0) {
    if (errno == ENOENT) return;  // a link to nothing
    fail(ErrorKind::kBadFile, cat("cannot open ", path.string(), ": ", std::strerror(errno)));
  }
  if (S_ISREG(one.info.st_mode)) out.push_back(std::move(one));
}

// Links to folders are followed, each folder once.
void add_folder(const fs::path& folder, const std::string& prefix, PathKind kind,
                std::set<std::pair<dev_t, ino_t>>& seen, std::vector<Listed>& out) {
  struct stat info{};
  if (::stat(folder.c_str(), &info) != 0 || !seen.insert({info.st_dev, info.st_ino}).second) return;
  std::error_code code;
  for (const auto& entry : fs::directory_iterator(folder, code)) {
    const fs::path& path = entry.path();
    if (is_hidden(path)) continue;
    const std::string name = prefix + path.filename().string();
    std::error_code none;
    if (entry.is_directory(none)) {
      add_folder(path, name + "/", kind, seen, out);
    } else if (kind != PathKind::kWeights || is_weight_file(path)) {
      add_file(path, name, out);
    }
  }
  if (code) {
    fail(ErrorKind::kBadFile,
         cat("cannot read the folder ", folder.string(), ": ", code.message()));
  }
}

// A data set that is divided into train, test and the like: what else lies in its folder, runs
// among it, is no data. Lists and arrays may lie beside the parts. False when the folder is not
// divided.
bool add_data_set(const fs::path& folder, std::set<std::pair<dev_t, ino_t>>& seen,
                  std::vector<Listed>& out) {
  bool divided = false;
  for (const char* part : {"train", "training", "test", "val", "valid", "validation"}) {
    if (!fs::is_directory(folder / part)) continue;
    divided = true;
    add_folder(folder / part, cat(part, "/"), PathKind::kAll, seen, out);
  }
  if (!divided) return false;
  for (const auto& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    for (const char* end : {".jsonl", ".npz", ".bin", "-ubyte", ".gz"}) {
      if (ends_with(name, end) && !is_hidden(entry.path())) add_file(entry.path(), name, out);
    }
  }
  return true;
}

// The shards that an index names, and the configuration beside the weights.
void add_companions(const fs::path& file, std::vector<Listed>& out) {
  std::set<std::string> names{"config.json", "adapter_config.json"};
  if (ends_with(file.string(), ".index.json")) {
    const Json index = Json::parse(read_file(file, std::size_t{1} << 28), nullptr, false);
    const Json map =
        index.is_object() && index.contains("weight_map") ? index["weight_map"] : Json();
    for (const auto& [tensor, shard] : map.items()) {
      if (shard.is_string()) names.insert(shard.get<std::string>());
    }
  }
  for (const std::string& name : names) {
    const fs::path beside = file.parent_path() / name;
    if (name != file.filename() && fs::is_regular_file(beside)) add_file(beside, name, out);
  }
}

std::vector<Listed> files_of(const fs::path& path, PathKind kind) {
  std::vector<Listed> out;
  if (fs::is_directory(path)) {
    std::set<std::pair<dev_t, ino_t>> seen;
    const bool divided = kind == PathKind::kAll && add_data_set(path, seen, out);
    if (!divided) add_folder(path, "", kind, seen, out);
  } else {
    add_file(path, "", out);
    if (kind == PathKind::kWeights) add_companions(path, out);
  }
  std::sort(out.begin(), out.end(),
            [](const Listed& a, const Listed& b) { return a.name < b.name; });
  return out;
}

double seconds_of(const timespec& time) {
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// The state of the files without their content. Nobody can set the date of the last change (ctime).
std::string state_of(const std::vector<Listed>& files) {
  Sha256 sum;
  for (const Listed& f : files) {
    sum.add(cat(f.name, " ", f.info.st_dev, " ", f.info.st_ino, " ", f.info.st_size, " ",
                f.info.st_mtim.tv_sec, ".", f.info.st_mtim.tv_nsec, " ", f.info.st_ctim.tv_sec, ".",
                f.info.st_ctim.tv_nsec, "\n"));
  }
  return sum.hex();
}

// A file that was written in this moment may be written once more within the resolution of its
// dates.
bool settled(const std::vector<Listed>& files) {
  const double now =
      std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  return std::all_of(files.begin(), files.end(), [&](const Listed& f) {
    return std::max(seconds_of(f.info.st_mtim), seconds_of(f.info.st_ctim)) < now - kSettled;
  });
}

std::string content_sum(const fs::path& path,
                        const std::function<void(std::uint64_t)>& read_bytes) {
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) {
    fail(ErrorKind::kBadFile, cat("cannot open ", path.string(), ": ", std::strerror(errno)));
  }
  const std::unique_ptr<const int, void (*)(const int*)> closes(&file,
                                                                [](const int* f) { ::close(*f); });
  Sha256 sum;
  std::vector<char> buffer(std::size_t{1} << 20);
  while (true) {
    const ssize_t n = ::read(file, buffer.data(), buffer.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      fail(ErrorKind::kBadFile, cat("cannot read ", path.string(), ": ", std::strerror(errno)));
    }
    if (n == 0) return sum.hex();
    check_stop();
    sum.add({buffer.data(), static_cast<std::size_t>(n)});
    read_bytes(static_cast<std::uint64_t>(n));
  }
}

Json to_json(const Fingerprint& f) {
  Json files = Json::array();
  for (const FileFingerprint& file : f.files) files.push_back({file.name, file.bytes, file.sha256});
  return {{"sha256", f.sha256}, {"bytes", f.bytes}, {"files", std::move(files)}};
}

Fingerprint from_json(const Json& json) {
  Fingerprint out;
  out.sha256 = json.at("sha256").get<std::string>();
  out.bytes = json.at("bytes").get<std::uint64_t>();
  for (const Json& file : json.at("files")) {
    out.files.push_back({file.at(0).get<std::string>(), file.at(1).get<std::uint64_t>(),
                         file.at(2).get<std::string>()});
  }
  return out;
}

// Sums by state: of this process, and large ones as files of the user's cache folder.
class Memory {
 public:
  static Memory& instance() {
    static Memory memory;
    return memory;
  }
  std::optional<Fingerprint> recall(const std::string& state) {
    const std::lock_guard lock(mutex_);
    if (const auto found = known_.find(state); found != known_.end()) return found->second;
    if (folder_.empty() || !fs::exists(folder_ / state)) return std::nullopt;
    try {
      return known_[state] = from_json(Json::parse(read_file(folder_ / state)));
    } catch (const std::exception&) {  // cut off, or of another version
      return std::nullopt;
    }
  }
  void keep(const std::string& state, const Fingerprint& fingerprint) {
    const std::lock_guard lock(mutex_);
    known_[state] = fingerprint;
    if (folder_.empty() || fingerprint.bytes < kRemembered) return;
    try {
      make_directories(folder_);
      write_file_atomic(folder_ / state, to_json(fingerprint).dump());
    } catch (const Error&) {  // a home that cannot be written costs time, nothing else
    }
  }

 private:
  Memory() {
    const char* cache = std::getenv("XDG_CACHE_HOME");
    const char* home = std::getenv("HOME");
    if (cache && *cache) {
      folder_ = fs::path(cache) / "tiltflow/sha256";
    } else if (home && *home) {
      folder_ = fs::path(home) / ".cache/tiltflow/sha256";
    }
  }
  std::mutex mutex_;
  std::map<std::string, Fingerprint> known_;
  fs::path folder_;
};

Fingerprint sum_up(const std::vector<Listed>& files, const std::string& label) {
  Fingerprint out;
  for (const Listed& f : files) out.bytes += static_cast<std::uint64_t>(f.info.st_size);
  std::optional<Progress> progress;
  if (out.bytes > kShown) {
    progress.emplace(cat("reading ", label), static_cast<std::int64_t>(out.bytes >> 20));
  }
  std::uint64_t done = 0;
  const auto advance = [&](std::uint64_t bytes) {
    done += bytes;
    if (progress) progress->update(static_cast<std::int64_t>(done >> 20), "MB");
  };
  Sha256 list;
  for (const Listed& f : files) {
    const FileFingerprint one{f.name, static_cast<std::uint64_t>(f.info.st_size),
                              content_sum(f.path, advance)};
    if (files.size() == 1 && one.name.empty()) out.sha256 = one.sha256;
    list.add(cat(one.name, "\n", one.bytes, " ", one.sha256, "\n"));
    if (files.size() <= kListedFiles) out.files.push_back(one);
  }
  if (out.sha256.empty()) out.sha256 = list.hex();
  return out;
}

}  // namespace

Fingerprint fingerprint_of(const fs::path& path, PathKind kind) {
  Fingerprint out;
  const std::string where = fs::absolute(path).string();
  if (!fs::exists(path)) {
    out.path = where;
    return out;
  }
  const std::vector<Listed> files = files_of(path, kind);
  const std::string state = state_of(files);
  if (std::optional<Fingerprint> known = Memory::instance().recall(state)) {
    out = std::move(*known);
  } else {
    const bool keep = settled(files);
    out = sum_up(files, path.filename().string());
    if (keep) Memory::instance().keep(state, out);
  }
  out.path = where;
  return out;
}

std::string difference(const Fingerprint& before, const Fingerprint& now) {
  if (before.sha256 == now.sha256) return "";
  if (now.sha256.empty()) return cat(now.path, " is gone");
  if (before.sha256.empty()) return cat(now.path, " is new");
  std::map<std::string, FileFingerprint> old;
  for (const FileFingerprint& file : before.files) old[file.name] = file;
  std::vector<std::string> changes;
  for (const FileFingerprint& file : now.files) {
    const auto found = old.find(file.name);
    const std::string name = file.name.empty() ? now.path : cat(now.path, ": ", file.name);
    if (found == old.end()) {
      changes.push_back(name + " is new");
    } else if (!(found->second == file)) {
      changes.push_back(cat(name, " has another content (sha256 ",
                            found->second.sha256.substr(0, 12), " before, ",
                            file.sha256.substr(0, 12), " now)"));
    }
    old.erase(file.name);
  }
  if (before.files.empty() || now.files.empty()) {
    return cat(now.path, " has another content (", before.bytes, " bytes before, ", now.bytes,
               " now)");
  }
  for (const auto& [name, file] : old) changes.push_back(cat(now.path, ": ", name, " is gone"));
  constexpr std::size_t kNamed = 3;
  const std::size_t more = changes.size() > kNamed ? changes.size() - kNamed : 0;
  changes.resize(std::min(changes.size(), kNamed));
  return join(changes, ", ") + (more ? cat(" and ", more, " more") : "");
}

}  // namespace tiltflow
