#include "tiltflow/tensor/parallel.h"

#include <ATen/Parallel.h>
#include <c10/core/StreamGuard.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <algorithm>
#include <atomic>
#include <exception>
#include <filesystem>
#include <latch>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "tiltflow/base/log.h"
#include "tiltflow/base/machine.h"
#include "tiltflow/base/signals.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/tensor/device.h"

namespace tiltflow {
namespace {
ThreadPolicy g_policy;
thread_local bool t_inside = false;

// Of the calling thread, on the device of the process.
std::optional<c10::Stream> current_stream() {
  const at::Device device = compute_device();
  if (!device.is_cuda()) return {};
  return c10::impl::VirtualGuardImpl(device.type()).getStream(device);
}

// Up to `count` threads; fewer, with a warning, where the system gives no more (`ulimit -u`,
// pids.max of a container).
std::vector<std::thread> start_threads(int count, const std::function<void()>& work) {
  std::vector<std::thread> threads;
  try {
    for (int i = 0; i < count; ++i) threads.emplace_back(work);
  } catch (const std::system_error& error) {
    static std::atomic<bool> warned{false};
    if (!warned.exchange(true)) {
      log_warn(cat("only ", threads.size() + 1, " of ", count + 1, " workers could be started (",
                   error.code().message(),
                   "): see `ulimit -u` and the container's pids.max, or set compute.workers"));
    }
  }
  return threads;
}

// libtorch's OpenMP ends the program when it cannot have its threads, so they are tried first.
int possible_threads(int wanted) {
  if (wanted <= 1) return 1;
  std::latch all_tried(1);
  std::vector<std::thread> threads = start_threads(wanted - 1, [&] { all_tried.wait(); });
  all_tried.count_down();
  for (std::thread& thread : threads) thread.join();
  return 1 + static_cast<int>(threads.size());
}
}  // namespace

void keep_freed_memory() {
#ifdef __GLIBC__
  mallopt(M_MMAP_THRESHOLD, 32 << 20);  // the largest value that is accepted
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  mallopt(M_TOP_PAD, 64 << 20);
#endif
}

int hardware_cores() {
  static const int cores = usable_cores(read_machine("/")).count;
  return cores;
}

int memory_nodes() {
  int nodes = 0;
  std::error_code none;
  for (const auto& entry : std::filesystem::directory_iterator("/sys/devices/system/node", none)) {
    const std::string name = entry.path().filename().string();
    if (name.size() > 4 && name.compare(0, 4, "node") == 0 &&
        name.find_first_not_of("0123456789", 4) == std::string::npos) {
      ++nodes;
    }
  }
  return std::max(1, nodes);
}

void set_thread_policy(ThreadPolicy policy) {
  g_policy = policy;
  if (g_policy.workers <= 0) g_policy.workers = hardware_cores();
  g_policy.intra_op = possible_threads(g_policy.intra_op);
  at::set_num_threads(g_policy.intra_op);
}

ThreadPolicy thread_policy() { return g_policy; }

void parallel_for(std::int64_t count, const std::function<void(std::int64_t)>& work) {
  const int workers =
      t_inside ? 1 : static_cast<int>(std::min<std::int64_t>(g_policy.workers, count));
  if (workers <= 1) {
    for (std::int64_t i = 0; i < count; ++i) {
      check_stop();
      work(i);
    }
    return;
  }
  std::atomic<std::int64_t> next{0};
  std::exception_ptr error;
  std::mutex error_mutex;
  const bool grad = at::GradMode::is_enabled();
  const std::optional<c10::Stream> stream = current_stream();
  const auto run = [&] {
    const at::AutoGradMode mode(grad);
    const c10::OptionalStreamGuard same(stream);
    t_inside = true;
    try {
      while (true) {
        check_stop();  // before a piece is taken: pieces that were taken may wait for each other
        const std::int64_t i = next++;
        if (i >= count) break;
        work(i);
      }
    } catch (...) {
      const std::lock_guard lock(error_mutex);
      if (!error) error = std::current_exception();
      next = count;
    }
    t_inside = false;
  };
  std::vector<std::thread> threads = start_threads(workers - 1, [&] {
    at::set_num_threads(g_policy.intra_op);
    run();
  });
  run();
  for (std::thread& thread : threads) thread.join();
  if (error) std::rethrow_exception(error);
}

void parallel_chunks(std::int64_t n, std::int64_t chunk,
                     const std::function<void(std::int64_t, std::int64_t)>& work) {
  chunk = std::max<std::int64_t>(1, chunk);
  parallel_for((n + chunk - 1) / chunk,
               [&](std::int64_t i) { work(i * chunk, std::min(n, (i + 1) * chunk)); });
}

}  // namespace tiltflow
