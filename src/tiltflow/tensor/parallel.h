// Independent pieces of work on several cores, one intra-op thread each. Small networks run faster
// this way than with every operator split over the cores, and results do not depend on the number
// of workers.
#pragma once

#include <cstdint>
#include <functional>

namespace tiltflow {

// Number of worker threads parallel_for uses, and libtorch's intra-op threads inside one worker.
struct ThreadPolicy {
  int workers = 1;
  int intra_op = 1;
};
void set_thread_policy(ThreadPolicy policy);  // workers <= 0: one per core
ThreadPolicy thread_policy();
int hardware_cores();  // that this process may use: affinity and quotas count (base/machine)
int memory_nodes();    // of this machine (NUMA); 1 when the system does not say
// Tells glibc to keep freed memory instead of returning it to the system after every operator:
// without this a training step of a small network spends much of its time in page faults. Called
// once at program start; no effect with other allocators.
void keep_freed_memory();

// Calls work(i) for i in [0, count), up to `workers` at a time; the caller takes part. The first
// exception is rethrown after all workers stopped. A stop (base/signals) ends it between two
// pieces; threads the system refuses are done without. Grad mode and stream of the caller apply
// inside. Not reentrant: nested calls run serially.
void parallel_for(std::int64_t count, const std::function<void(std::int64_t)>& work);

// Splits [0, n) into pieces of at most `chunk` and calls work(begin, end) for each, in parallel.
void parallel_chunks(std::int64_t n, std::int64_t chunk,
                     const std::function<void(std::int64_t, std::int64_t)>& work);

}  // namespace tiltflow
