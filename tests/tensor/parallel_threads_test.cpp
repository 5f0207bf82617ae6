// A system that gives no more threads (`ulimit -u`, pids.max of a container).
#if !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)  // they stand there themselves
#include <dlfcn.h>
#include <pthread.h>

#include <atomic>
#include <cerrno>

#include "tests/support.h"
#include "tiltflow/tensor/parallel.h"

namespace {
std::atomic<int> g_threads_left{1 << 30};  // how many more the system gives
}

// Stands in front of the system's pthread_create in this binary.
extern "C" int pthread_create(pthread_t* thread, const pthread_attr_t* attributes,
                              void* (*start)(void*), void* argument) noexcept {
  using Create = int (*)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
  static const auto real = reinterpret_cast<Create>(::dlsym(RTLD_NEXT, "pthread_create"));
  if (g_threads_left-- <= 0) return EAGAIN;
  return real(thread, attributes, start, argument);
}

namespace tiltflow {
namespace {

class FewThreads {
 public:
  explicit FewThreads(int count) { g_threads_left = count; }
  ~FewThreads() {
    g_threads_left = 1 << 30;
    set_thread_policy({1, 1});
  }
};

}  // namespace

TEST(tensor_parallel_threads, GoesOnWithTheThreadsThereAre) {
  for (const int given : {0, 1}) {
    set_thread_policy({4, 1});
    const FewThreads few(given);
    std::vector<std::atomic<int>> hits(50);
    parallel_for(50, [&](std::int64_t i) { ++hits[static_cast<std::size_t>(i)]; });
    for (const auto& hit : hits) EXPECT_EQ(hit.load(), 1);
  }
}

TEST(tensor_parallel_threads, ThreadsOfLibtorchAreTriedBeforeTheyAreAskedFor) {
  const FewThreads few(1);
  set_thread_policy({1, 4});
  EXPECT_EQ(thread_policy().intra_op, 2) << "OpenMP would end the program";
}

}  // namespace tiltflow
#endif
