#include "tiltflow/base/signals.h"

#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <thread>

#include "tests/support.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/base/temporary_file.h"

namespace tiltflow {
namespace {

// A process that handles signals as the program does and does `work`; its exit status is that of
// waitpid.
pid_t in_child(const std::function<void()>& work) {
  const pid_t child = ::fork();
  if (child != 0) return child;
  std::freopen("/dev/null", "w", stderr);
  install_stop_handlers();
  work();
  ::_exit(0);
}

int status_of(pid_t child) {
  int status = -1;
  ::waitpid(child, &status, 0);
  return status;
}

int exit_of(pid_t child) {
  const int status = status_of(child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

void hang() {
  while (true) ::pause();
}

bool throws_stopped() {
  try {
    check_stop();
  } catch (const Error& error) {
    return error.kind() == ErrorKind::kStopped;
  }
  return false;
}

}  // namespace

TEST(base_signals, EveryStopSignalIsHeard) {
  for (const int signal : {SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2, SIGXCPU}) {
    const pid_t child = in_child([&] {
      const bool before = throws_stopped();
      ::raise(signal);
      ::_exit(!before && stop_signal() == signal && throws_stopped() ? 7 : 1);
    });
    EXPECT_EQ(exit_of(child), 7) << signal;
  }
}

TEST(base_signals, WhatIsIgnoredAtTheStartStaysIgnored) {
  const auto before = ::signal(SIGHUP, SIG_IGN);
  const pid_t child = in_child([] {
    ::raise(SIGHUP);
    ::_exit(stop_signal() == 0 && !throws_stopped() ? 7 : 1);
  });
  ::signal(SIGHUP, before);
  EXPECT_EQ(exit_of(child), 7);
}

TEST(base_signals, ASecondRequestEndsAtOnceAndAnEchoDoesNot) {
  const pid_t echo = in_child([] {
    for (int i = 0; i < 3; ++i) ::raise(SIGTERM);
    ::_exit(7);
  });
  const pid_t twice = in_child([] {
    ::raise(SIGTERM);
    std::this_thread::sleep_for(std::chrono::milliseconds(150));
    ::raise(SIGINT);
    ::_exit(7);
  });
  const pid_t processor_time = in_child([] {  // comes every second by itself
    ::raise(SIGXCPU);
    std::this_thread::sleep_for(std::chrono::milliseconds(150));
    ::raise(SIGXCPU);
    ::_exit(7);
  });
  EXPECT_EQ(exit_of(echo), 7);
  EXPECT_EQ(exit_of(twice), -SIGINT);
  EXPECT_EQ(exit_of(processor_time), 7);
}

// Work that never hears the flag; the children wait side by side.
TEST(base_signals, TheDeadlineEndsWhatDoesNotHear) {
  const test::TempDir dir;
  const auto begin = std::chrono::steady_clock::now();
  const pid_t plain = in_child([&] {
    TemporaryFile unfinished(dir.path());
    if (unfinished.open(0600) != 0) ::_exit(1);
    ::raise(SIGTERM);
    hang();
  });
  const pid_t kept = in_child([] {
    const StopKeeper keeper("again");
    ::raise(SIGHUP);
    hang();
  });
  const pid_t interrupted = in_child([] {
    const StopKeeper keeper("again");
    ::raise(SIGINT);
    hang();
  });
  const pid_t saving = in_child([&] {
    const StopSaver saver("again", [&] {
      write_file_atomic(dir / "saved", "x");
      std::this_thread::sleep_for(std::chrono::milliseconds(700));  // past the deadline of others
      write_file_atomic(dir / "saved", "whole");
      return std::string("saved");
    });
    ::raise(SIGUSR1);
    hang();
  });
  EXPECT_EQ(exit_of(plain), 128 + SIGTERM);
  EXPECT_EQ(exit_of(kept), 75);
  EXPECT_EQ(exit_of(interrupted), 130);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::milliseconds(2000))
      << "a stop is heard within two seconds";
  EXPECT_EQ(exit_of(saving), 75);
  EXPECT_EQ(read_file(dir / "saved"), "whole");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir.path()), {}), 1)
      << "the unfinished file is gone";
}

TEST(base_signals, TheOutermostKeeperSaysHowToContinue) {
  const pid_t child = in_child([] {
    const StopKeeper outer("the loop continues");
    {
      const StopSaver inner("--resume", [] { return std::string(); });
    }
    const StopSaver second("--resume", [] { return std::string(); });
    ::raise(SIGTERM);
    try {
      check_stop();
    } catch (const Error& error) {
      ::_exit(error.hint() == "the loop continues" && stop_exit_code() == 75 ? 7 : 1);
    }
  });
  EXPECT_EQ(exit_of(child), 7);
}

}  // namespace tiltflow
