// What this process may use of the machine: cores by affinity and by the control groups' quota,
// memory by the control groups' limits. The readers are functions of a root folder, so that they
// can be shown any machine.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace tiltflow {

// One control group with a limit of its own, from the process's group upwards. Numbers below zero:
// the file does not say.
struct GroupLimit {
  std::string file;   // where the limit stands, e.g. /sys/fs/cgroup/job/memory.max
  double limit = -1;  // cores, or bytes
  double used = -1;   // memory: bytes in use, without file caches that the kernel gives back
};

struct Machine {
  int online = 1;                         // cores of the machine
  int affinity = 0;                       // cores this process may run on; 0: unknown
  std::vector<GroupLimit> cpu_quotas;     // v2 cpu.max, v1 cpu.cfs_quota_us / cpu.cfs_period_us
  double available_memory = -1;           // MemAvailable of /proc/meminfo, bytes
  std::vector<GroupLimit> memory_limits;  // v2 memory.max and memory.high, v1 memory.limit_in_bytes
  double address_space = -1;              // what `ulimit -v` leaves, bytes
};
// Reads ROOT/proc and the control groups that ROOT/proc/self/mountinfo names, below ROOT. Affinity,
// online cores and `ulimit -v` are this process's. Never throws: what cannot be read does not
// limit.
Machine read_machine(const std::filesystem::path& root);

struct UsableCores {
  int count = 1;
  std::string reason;  // "affinity", "a quota of 0.5 in /sys/fs/cgroup/job/cpu.max"
};
// The smallest of online cores, affinity and quotas (rounded up), at least 1.
UsableCores usable_cores(const Machine& machine);

struct UsableMemory {
  double bytes = 0;
  std::string reason;
};
// The smallest of MemAvailable and of what each limit leaves; 4 GB when nothing says anything.
UsableMemory usable_memory(const Machine& machine);

}  // namespace tiltflow
