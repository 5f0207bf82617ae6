// A stop between two pieces of work.
#include "tiltflow/tensor/parallel.h"

#include <atomic>
#include <chrono>
#include <csignal>
#include <thread>

#include "tests/support.h"
#include "tiltflow/base/signals.h"

namespace tiltflow {

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
