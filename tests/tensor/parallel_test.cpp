// A stop between two pieces of work.
#include <atomic>
#include <chrono>
#include <csignal>
#include <thread>

#include "tests/support.h"
#include "tiltflow/base/signals.h"
#include "tiltflow/tensor/parallel.h"

namespace tiltflow {

TEST(tensor_parallel, RunsEverythingOnceAndRethrows) {
  set_thread_policy({4, 1});
  std::vector<std::atomic<int>> hits(100);
  parallel_for(100, [&](std::int64_t i) { ++hits[static_cast<std::size_t>(i)]; });
  for (const auto& hit : hits) EXPECT_EQ(hit.load(), 1);
  EXPECT_THROW(parallel_for(10,
                            [](std::int64_t i) {
                              if (i == 5) fail(ErrorKind::kFailure, "x");
                            }),
               Error);
  const at::NoGradGuard no_grad;
  std::atomic<bool> grad{false};
  parallel_for(8, [&](std::int64_t) {
    if (at::GradMode::is_enabled()) grad = true;
  });
  EXPECT_FALSE(grad) << "workers must inherit the caller's grad mode";
  set_thread_policy({1, 1});
}

TEST(tensor_parallel, AStopEndsTheWorkBetweenTwoPieces) {
  install_stop_handlers();
  for (const int workers : {1, 3}) {
    set_thread_policy({workers, 1});
    std::atomic<int> done{0};
    test::expect_error(ErrorKind::kStopped, "stopped by SIGUSR1", [&] {
      parallel_for(1000, [&](std::int64_t i) {
        if (i == 5) ::raise(SIGUSR1);
        std::this_thread::sleep_for(std::chrono::microseconds(100));
        ++done;
      });
    });
    forget_stop();
    EXPECT_LT(done, 100) << workers;
  }
  set_thread_policy({1, 1});
}

}  // namespace tiltflow
