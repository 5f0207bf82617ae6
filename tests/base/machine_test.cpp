#include "tiltflow/base/machine.h"

#include "tests/support.h"
#include "tiltflow/base/strings.h"

namespace tiltflow {
namespace {

namespace fs = std::filesystem;

// A made-up machine: files by their paths below a root.
class FakeRoot {
 public:
  void put(const std::string& path, const std::string& text) {
    const fs::path file = dir_.path() / fs::path(path).relative_path();
    fs::create_directories(file.parent_path());
    write_file_atomic(file, text);
  }
  Machine read() const { return read_machine(dir_.path()); }

 private:
  test::TempDir dir_;
};

const char* const kUnified =
    "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";

// Affinity is that of the tests: many cores stand for "no limit".
UsableCores cores_of(Machine machine) {
  machine.online = 64;
  machine.affinity = 64;
  return usable_cores(machine);
}

}  // namespace

TEST(base_machine, UnifiedGroupsLimitFromTheLeafUpwards) {
  FakeRoot root;
  root.put("/proc/self/mountinfo", cat("22 1 8:1 / / rw - ext4 /dev/sda1 rw\n", kUnified));
  root.put("/proc/self/cgroup", "0::/slurm/job 7/step\n");
  root.put("/proc/meminfo", "MemTotal: 64000000 kB\nMemAvailable:   32000000 kB\n");
  root.put("/sys/fs/cgroup/slurm/job 7/step/cpu.max", "max 100000\n");
  root.put("/sys/fs/cgroup/slurm/job 7/cpu.max", "250000 100000\n");
  root.put("/sys/fs/cgroup/slurm/cpu.max", "800000 100000\n");
  root.put("/sys/fs/cgroup/slurm/job 7/step/memory.max", "max\n");
  root.put("/sys/fs/cgroup/slurm/job 7/step/memory.high", "9000000000\n");
  root.put("/sys/fs/cgroup/slurm/job 7/step/memory.current", "1000000000\n");
  root.put("/sys/fs/cgroup/slurm/job 7/memory.max", "8000000000\n");
  root.put("/sys/fs/cgroup/slurm/job 7/memory.current", "5000000000\n");
  root.put("/sys/fs/cgroup/slurm/job 7/memory.stat", "anon 1\ninactive_file 2000000000\n");
  const Machine machine = root.read();
  EXPECT_EQ(cores_of(machine).count, 3) << "two and a half cores need three workers";
  EXPECT_NE(cores_of(machine).reason.find("job 7/cpu.max"), std::string::npos)
      << cores_of(machine).reason;
  EXPECT_DOUBLE_EQ(usable_memory(machine).bytes, 5e9) << "8 GB, 5 GB in use, 2 GB of them caches";
}

TEST(base_machine, SeparateHierarchies) {
  FakeRoot root;
  root.put("/proc/self/mountinfo",
           "33 25 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n34 25 0:30 "
           "/ /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n");
  root.put("/proc/self/cgroup", "5:memory:/tf28\n4:cpu,cpuacct:/tf28\n0::/\n");
  root.put("/proc/meminfo", "MemAvailable: 32000000 kB\n");
  root.put("/sys/fs/cgroup/cpu,cpuacct/tf28/cpu.cfs_quota_us", "50000\n");
  root.put("/sys/fs/cgroup/cpu,cpuacct/tf28/cpu.cfs_period_us", "100000\n");
  root.put("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n");
  root.put("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n");
  root.put("/sys/fs/cgroup/memory/tf28/memory.limit_in_bytes", "800000000\n");
  root.put("/sys/fs/cgroup/memory/tf28/memory.usage_in_bytes", "300000000\n");
  root.put("/sys/fs/cgroup/memory/tf28/memory.stat", "total_inactive_file 100000000\n");
  root.put("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  root.put("/sys/fs/cgroup/memory/memory.usage_in_bytes", "900000000\n");
  EXPECT_EQ(cores_of(root.read()).count, 1) << "half a core is one worker";
  EXPECT_DOUBLE_EQ(usable_memory(root.read()).bytes, 6e8);
}

// Without a name space of its own a container sees its group as the root of the mount, and its full
// name in /proc/self/cgroup.
TEST(base_machine, AContainerSeesItsGroupAsTheRootOfTheMount) {
  FakeRoot root;
  root.put("/proc/self/mountinfo",
           "34 25 0:30 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n");
  root.put("/proc/self/cgroup", "5:memory:/docker/abc\n");
  root.put("/sys/fs/cgroup/memory/memory.limit_in_bytes", "1000000000\n");
  root.put("/sys/fs/cgroup/memory/memory.usage_in_bytes", "250000000\n");
  EXPECT_DOUBLE_EQ(usable_memory(root.read()).bytes, 7.5e8);
  root.put("/proc/self/cgroup", "5:memory:/not/seen/here\n");
  EXPECT_DOUBLE_EQ(usable_memory(root.read()).bytes, 7.5e8)
      << "a group that is not visible: the mount's root counts";
}

TEST(base_machine, NothingReadableLimitsNothing) {
  FakeRoot root;
  EXPECT_EQ(cores_of(root.read()).count, 64);
  EXPECT_DOUBLE_EQ(usable_memory(root.read()).bytes, 4e9);
  root.put("/proc/meminfo", "MemAvailable: 2000000 kB\n");
  EXPECT_DOUBLE_EQ(usable_memory(root.read()).bytes, 2.048e9);
  root.put("/proc/self/mountinfo", cat(kUnified, "half a line\n- - -\n"));
  root.put("/proc/self/cgroup", "0::/../..\nnonsense\n");
  root.put("/sys/fs/cgroup/cpu.max", "one two\n");
  root.put("/sys/fs/cgroup/memory.max", "\n");
  EXPECT_EQ(cores_of(root.read()).count, 64);
  EXPECT_DOUBLE_EQ(usable_memory(root.read()).bytes, 2.048e9);
}

TEST(base_machine, AffinityAndUlimitCount) {
  Machine machine;
  machine.online = 64;
  machine.affinity = 2;
  EXPECT_EQ(usable_cores(machine).count, 2);
  EXPECT_EQ(usable_cores(machine).reason, "affinity");
  machine.cpu_quotas = {{"cpu.max", 1.0, -1}};
  EXPECT_EQ(usable_cores(machine).count, 1);
  machine.available_memory = 9e9;
  machine.address_space = 1e9;
  EXPECT_DOUBLE_EQ(usable_memory(machine).bytes, 1e9);
  machine.memory_limits = {{"memory.max", 1e9, 3e9}};
  EXPECT_DOUBLE_EQ(usable_memory(machine).bytes, 0) << "more in use than a lowered limit allows";
}

}  // namespace tiltflow
