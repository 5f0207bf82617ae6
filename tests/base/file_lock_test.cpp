#include "tiltflow/base/file_lock.h"

#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <thread>

#include "tests/support.h"
#include "tiltflow/base/strings.h"

namespace {
int g_flock_error = 0;  // what flock answers; 0: it works
}

// Stands in front of the system's flock in this binary.
extern "C" int flock(int fd, int operation) noexcept {
  if (g_flock_error == 0) return static_cast<int>(::syscall(SYS_flock, fd, operation));
  errno = g_flock_error;
  return -1;
}

namespace tiltflow {

TEST(base_file_lock, AFileSystemWithoutLocksIsAWarning) {
  const test::TempDir dir;
  for (const int code : {ENOSYS, ENOLCK, EOPNOTSUPP, EINVAL}) {
    g_flock_error = code;
    testing::internal::CaptureStderr();
    {
      const ProcessLock waiting(dir / "lock");
      EXPECT_FALSE(waiting.guards());
      const auto trying = ProcessLock::try_hold(dir / "lock");
      ASSERT_TRUE(trying);
      EXPECT_FALSE(trying->guards());
    }
    EXPECT_NE(testing::internal::GetCapturedStderr().find("no file locks"), std::string::npos);
    EXPECT_FALSE(std::filesystem::exists(dir / "lock"));
  }
  g_flock_error = EIO;
  test::expect_error(ErrorKind::kFailure, "cannot lock",
                     [&] { ProcessLock::try_hold(dir / "lock"); });
  g_flock_error = 0;
}

TEST(base_file_lock, OneHolderAtATimeAndItsNameIsTold) {
  const test::TempDir dir;
  {
    const auto first = ProcessLock::try_hold(dir / "lock");
    ASSERT_TRUE(first);
    EXPECT_TRUE(first->guards());
    EXPECT_FALSE(ProcessLock::try_hold(dir / "lock")) << "two holders";
    EXPECT_TRUE(starts_with(lock_owner(dir / "lock"), cat("process ", ::getpid(), " on ")))
        << lock_owner(dir / "lock");
  }
  EXPECT_FALSE(std::filesystem::exists(dir / "lock")) << "the owner removes its file";
  EXPECT_TRUE(ProcessLock::try_hold(dir / "lock"));
  test::expect_error(ErrorKind::kFailure, "lock file",
                     [&] { ProcessLock::try_hold(dir / "missing/lock"); });
}

TEST(base_file_lock, AKilledOwnerHoldsNothing) {
  const test::TempDir dir;
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    const auto held = ProcessLock::try_hold(dir / "lock");
    [[maybe_unused]] const ssize_t told = ::write(ready[1], held ? "y" : "n", 1);
    ::pause();
    ::_exit(0);
  }
  char answer = 0;
  ASSERT_EQ(::read(ready[0], &answer, 1), 1);
  EXPECT_EQ(answer, 'y');
  EXPECT_FALSE(ProcessLock::try_hold(dir / "lock"));
  EXPECT_NE(lock_owner(dir / "lock").find(cat(child)), std::string::npos);
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  EXPECT_TRUE(std::filesystem::exists(dir / "lock"));
  EXPECT_TRUE(ProcessLock::try_hold(dir / "lock")) << "the file of a killed process blocks nobody";
  ::close(ready[0]);
  ::close(ready[1]);
}

// The removal of the file must not let two waiters in: one on the old file, one on the new.
TEST(base_file_lock, WaitersComeInOneByOne) {
  const test::TempDir dir;
  std::atomic<int> inside{0};
  std::atomic<int> most{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 3; ++i) {
        const ProcessLock lock(dir / "lock");
        most = std::max(most.load(), ++inside);
        std::this_thread::yield();
        --inside;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(most, 1);
}

}  // namespace tiltflow
