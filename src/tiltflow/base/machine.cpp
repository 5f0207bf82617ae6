#include "tiltflow/base/machine.h"

#include <sched.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <optional>
#include <sstream>

#include "tiltflow/base/strings.h"

namespace tiltflow {
namespace {

namespace fs = std::filesystem;

constexpr double kUnknownMemory = 4e9;

std::vector<std::string> lines_of(const fs::path& file) {
  std::ifstream in(file);
  std::vector<std::string> out;
  for (std::string line; std::getline(in, line);) out.push_back(line);
  return out;
}

std::vector<std::string> words_of(const std::string& line) {
  std::istringstream in(line);
  std::vector<std::string> out;
  for (std::string word; in >> word;) out.push_back(word);
  return out;
}

// Nothing for "max", an empty or a missing file.
std::optional<double> number_of(const std::string& word) {
  char* end = nullptr;
  const double value = std::strtod(word.c_str(), &end);
  if (word.empty() || *end != '\0' || !std::isfinite(value)) return std::nullopt;
  return value;
}

std::vector<std::string> first_line(const fs::path& file) {
  const std::vector<std::string> lines = lines_of(file);
  return lines.empty() ? std::vector<std::string>() : words_of(lines[0]);
}

std::optional<double> number_in(const fs::path& file) {
  const std::vector<std::string> words = first_line(file);
  return words.empty() ? std::nullopt : number_of(words[0]);
}

// The number after `key` in lines of "key number".
std::optional<double> number_after(const fs::path& file, const std::string& key) {
  for (const std::string& line : lines_of(file)) {
    const std::vector<std::string> words = words_of(line);
    if (words.size() >= 2 && words[0] == key) return number_of(words[1]);
  }
  return std::nullopt;
}

bool lists(const std::string& names, const std::string& name) {
  const std::vector<std::string> all = split(names, ',');
  return std::find(all.begin(), all.end(), name) != all.end();
}

// Blanks in paths of mountinfo are written as \040.
std::string unescaped(const std::string& text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const bool octal = text[i] == '\\' && i + 3 < text.size();
    out +=
        octal ? static_cast<char>(std::strtol(text.substr(i + 1, 3).c_str(), nullptr, 8)) : text[i];
    if (octal) i += 3;
  }
  return out;
}

struct Mount {
  std::string root;  // the group that is seen at the mount point
  std::string point;
};

// Where a controller's groups are mounted; `controller` empty: the unified hierarchy (v2).
std::optional<Mount> mount_of(const fs::path& root, const std::string& controller) {
  for (const std::string& line : lines_of(root / "proc/self/mountinfo")) {
    const std::vector<std::string> words = words_of(line);
    const auto dash = std::find(words.begin(), words.end(), "-");
    if (words.size() < 6 || words.end() - dash < 4) continue;
    const std::string& type = dash[1];
    const bool fits =
        controller.empty() ? type == "cgroup2" : type == "cgroup" && lists(dash[3], controller);
    if (fits) return Mount{unescaped(words[3]), unescaped(words[4])};
  }
  return std::nullopt;
}

// The process's group in a hierarchy, from lines "4:memory:/job" (v1) and "0::/job" (v2).
std::string group_of(const fs::path& root, const std::string& controller) {
  for (const std::string& line : lines_of(root / "proc/self/cgroup")) {
    const std::size_t first = line.find(':');
    const std::size_t second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string names = line.substr(first + 1, second - first - 1);
    if (controller.empty() ? names.empty() : lists(names, controller)) {
      return line.substr(second + 1);
    }
  }
  return "/";
}

// Folders of the process's group and of those above it, innermost first. A container may see its
// own group as the mount's root.
std::vector<fs::path> group_folders(const fs::path& root, const std::string& controller) {
  const std::optional<Mount> mount = mount_of(root, controller);
  if (!mount) return {};
  std::string group = group_of(root, controller);
  if (mount->root != "/") {
    group = starts_with(group, mount->root) ? group.substr(mount->root.size()) : "/";
  }
  const fs::path top = root / fs::path(mount->point).relative_path();
  fs::path folder = (top / fs::path(group).relative_path()).lexically_normal();
  if (!folder.has_filename()) folder = folder.parent_path();
  std::error_code ignored;
  if (group.find("..") != std::string::npos || !fs::exists(folder, ignored)) folder = top;
  std::vector<fs::path> out{folder};
  while (out.back() != top && out.back().has_relative_path()) {
    out.push_back(out.back().parent_path());
  }
  return out;
}

void add_cpu_quotas(const fs::path& root, Machine& machine) {
  for (const fs::path& folder : group_folders(root, "")) {
    const std::vector<std::string> words = first_line(folder / "cpu.max");
    if (words.size() < 2) continue;
    const std::optional<double> quota = number_of(words[0]);
    const std::optional<double> period = number_of(words[1]);
    if (quota && period && *period > 0) {
      machine.cpu_quotas.push_back({(folder / "cpu.max").string(), *quota / *period, -1});
    }
  }
  for (const fs::path& folder : group_folders(root, "cpu")) {
    const std::optional<double> quota = number_in(folder / "cpu.cfs_quota_us");
    const std::optional<double> period = number_in(folder / "cpu.cfs_period_us");
    if (quota && period && *quota > 0 && *period > 0) {
      machine.cpu_quotas.push_back({(folder / "cpu.cfs_quota_us").string(), *quota / *period, -1});
    }
  }
}

// Caches of files count as used, but the kernel gives the inactive ones back before it refuses.
double in_use(const fs::path& usage, const fs::path& statistics, const std::string& cache) {
  const double cached = number_after(statistics, cache).value_or(0);
  return std::max(0.0, number_in(usage).value_or(0) - cached);
}

void add_memory_limits(const fs::path& root, Machine& machine) {
  for (const fs::path& folder : group_folders(root, "")) {
    for (const char* name : {"memory.max", "memory.high"}) {
      const std::optional<double> limit = number_in(folder / name);
      if (limit) {
        machine.memory_limits.push_back(
            {(folder / name).string(), *limit,
             in_use(folder / "memory.current", folder / "memory.stat", "inactive_file")});
      }
    }
  }
  for (const fs::path& folder : group_folders(root, "memory")) {
    const fs::path file = folder / "memory.limit_in_bytes";
    const std::optional<double> limit = number_in(file);
    if (limit) {
      machine.memory_limits.push_back({file.string(), *limit,
                                       in_use(folder / "memory.usage_in_bytes",
                                              folder / "memory.stat", "total_inactive_file")});
    }
  }
}

// More than the 1024 cores of a plain cpu_set_t exist.
int cores_by_affinity() {
  for (int most = 1024; most <= 1 << 20; most *= 2) {
    cpu_set_t* set = CPU_ALLOC(static_cast<std::size_t>(most));
    const std::size_t size = CPU_ALLOC_SIZE(static_cast<std::size_t>(most));
    const bool known = ::sched_getaffinity(0, size, set) == 0;
    const int count = known ? CPU_COUNT_S(size, set) : 0;
    CPU_FREE(set);
    if (known) return count;
  }
  return 0;
}

double left_of_address_space(const fs::path& root) {
  rlimit limit{};
  if (::getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return -1;
  const double used = 1024 * number_after(root / "proc/self/status", "VmSize:").value_or(0);
  return std::max(0.0, static_cast<double>(limit.rlim_cur) - used);
}

}  // namespace

Machine read_machine(const fs::path& root) {
  Machine out;
  out.online = static_cast<int>(std::max(1L, ::sysconf(_SC_NPROCESSORS_ONLN)));
  out.affinity = cores_by_affinity();
  add_cpu_quotas(root, out);
  const std::optional<double> available = number_after(root / "proc/meminfo", "MemAvailable:");
  if (available) out.available_memory = 1024 * *available;
  add_memory_limits(root, out);
  out.address_space = left_of_address_space(root);
  return out;
}

UsableCores usable_cores(const Machine& m) {
  UsableCores out{m.online, "all of the machine"};
  if (m.affinity > 0 && m.affinity < out.count) out = {m.affinity, "affinity"};
  for (const GroupLimit& quota : m.cpu_quotas) {
    const int whole = std::max(1, static_cast<int>(std::ceil(quota.limit - 1e-9)));
    if (whole < out.count) {
      out = {whole, cat("a quota of ", compact(quota.limit), " in ", quota.file)};
    }
  }
  return out;
}

UsableMemory usable_memory(const Machine& m) {
  UsableMemory out{m.available_memory, "free on the machine"};
  const auto lower = [&](double bytes, const std::string& reason) {
    if (out.bytes < 0 || bytes < out.bytes) out = {std::max(0.0, bytes), reason};
  };
  for (const GroupLimit& each : m.memory_limits) {
    lower(each.limit - each.used, cat("a limit of ", format_bytes(each.limit), " in ", each.file,
                                      ", ", format_bytes(each.used), " in use"));
  }
  if (m.address_space >= 0) lower(m.address_space, "what `ulimit -v` leaves");
  return out.bytes >= 0 ? out : UsableMemory{kUnknownMemory, "nothing is known"};
}

}  // namespace tiltflow
