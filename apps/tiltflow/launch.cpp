#include "launch.h"

#include <arpa/inet.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "tiltflow/base/descriptor.h"
#include "tiltflow/base/error.h"
#include "tiltflow/base/signals.h"
#include "tiltflow/base/strings.h"

namespace tiltflow::app {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::seconds kTimeToNotice(
    1);  // after a child has died: the others lose their partner and say so
constexpr std::chrono::seconds kTimeToSave(5);  // after SIGTERM

// A port that is free now and reachable; rank 0 binds it a moment later.
int free_port() {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  auto* generic = reinterpret_cast<sockaddr*>(&address);
  const Descriptor server{::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)};
  const Descriptor client{::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)};
  const bool listens = server.fd >= 0 && ::bind(server.fd, generic, size) == 0 &&
                       ::getsockname(server.fd, generic, &size) == 0 && ::listen(server.fd, 1) == 0;
  if (!listens || client.fd < 0 || ::connect(client.fd, generic, size) != 0) {
    fail(ErrorKind::kFailure, cat("the processes cannot meet at 127.0.0.1: ", std::strerror(errno)),
         "the loopback interface seems to be down (in a container or network namespace: `ip link "
         "set lo up`); without --procs none is needed");
  }
  return ntohs(address.sin_port);
}

struct Child {
  int rank = 0;
  pid_t pid = 0;
  std::optional<int> status;  // of waitpid, once it has ended
  bool killed = false;        // by this process, because another one had failed
};

int exit_code_of(int status) {
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

bool stopped_on_request(int code) {
  return code == exit_code(ErrorKind::kStopped) ||
         (code > 128 && code != 128 + SIGKILL && is_stop_signal(code - 128));
}

std::string ending_of(const Child& child) {
  const int status = *child.status;
  if (WIFEXITED(status)) {
    return cat("rank ", child.rank, " ended with exit code ", WEXITSTATUS(status));
  }
  return cat("rank ", child.rank, " was killed by signal ", WTERMSIG(status), " (",
             ::strsignal(WTERMSIG(status)), ")");
}

// Started with the same arguments; it dies with this process, even when that is killed.
pid_t start(std::vector<char*>& arguments, const sigset_t& mask) {
  const pid_t parent = ::getpid();
  const pid_t child = ::fork();
  if (child != 0) return child;
  ::setpgid(0, 0);  // a Ctrl-C at the terminal reaches the children once, through this process
  ::prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (::getppid() != parent) ::_exit(128 + SIGTERM);  // it died before the line above
  ::sigprocmask(SIG_SETMASK, &mask, nullptr);
  ::execv("/proc/self/exe", arguments.data());
  ::_exit(127);
}

class Children {
 public:
  void add(pid_t pid) { all_.push_back({static_cast<int>(all_.size()), pid, std::nullopt, false}); }

  std::size_t running() const {
    std::size_t count = 0;
    for (const Child& child : all_) count += child.status ? 0 : 1;
    return count;
  }

  void send(int signal) {
    for (Child& child : all_) {
      if (child.status) continue;
      ::kill(child.pid, signal);
      child.killed = child.killed || signal == SIGKILL;
    }
  }

  // Takes the endings that are there. True when one of them is a failure.
  bool reap() {
    bool failed = false;
    int status = 0;
    for (pid_t ended = ::waitpid(-1, &status, WNOHANG); ended > 0;
         ended = ::waitpid(-1, &status, WNOHANG)) {
      for (Child& child : all_) {
        if (child.pid == ended) child.status = status;
      }
      failed = failed || exit_code_of(status) != 0;
    }
    return failed;
  }

  // The ending that says most: a signal from outside, then a code of its own, then 1 (which also
  // follows from a lost partner).
  const Child* cause() const {
    const Child* out = nullptr;
    const auto weight = [](const Child& child) {
      const int code = exit_code_of(*child.status);
      if (code == 0 || child.killed) return 0;
      if (stopped_on_request(code)) return 1;
      if (code == 1) return 2;
      return WIFEXITED(*child.status) ? 3 : 4;
    };
    for (const Child& child : all_) {
      if (weight(child) > (out ? weight(*out) : 0)) out = &child;
    }
    return out;
  }

 private:
  std::vector<Child> all_;
};

// SIGCHLD and the stop signals that are not ignored, taken one by one instead of by handlers.
sigset_t awaited_signals() {
  ::signal(SIGCHLD, SIG_DFL);
  sigset_t out;
  ::sigemptyset(&out);
  ::sigaddset(&out, SIGCHLD);
  for (int signal = 1; signal < NSIG; ++signal) {
    struct sigaction now{};
    if (is_stop_signal(signal) && ::sigaction(signal, nullptr, &now) == 0 &&
        now.sa_handler != SIG_IGN) {
      ::sigaddset(&out, signal);
    }
  }
  return out;
}

void set_environment(int count) {
  for (const char* name : {"WORLD_SIZE", "LOCAL_WORLD_SIZE"}) ::setenv(name, cat(count).c_str(), 1);
  ::setenv("MASTER_ADDR", "127.0.0.1", 1);
  ::setenv("MASTER_PORT", cat(free_port()).c_str(), 1);
}

// Passes stop signals on; ends the others when one has failed.
void supervise(Children& children, const sigset_t& awaited) {
  std::optional<Clock::time_point> failed;
  int sent = 0;
  while (true) {
    if (children.reap() && !failed) failed = Clock::now();
    if (children.running() == 0) return;
    if (failed && sent != SIGKILL) {
      const auto waited = Clock::now() - *failed;
      const int due = waited > kTimeToNotice + kTimeToSave ? SIGKILL
                      : waited > kTimeToNotice             ? SIGTERM
                                                           : 0;
      if (due != sent) children.send(due);
      sent = due;
    }
    const timespec nap{0, 100'000'000};
    const int signal = ::sigtimedwait(&awaited, nullptr, &nap);
    if (signal > 0 && signal != SIGCHLD) children.send(signal);
  }
}

}  // namespace

int launch(int count, int argc, char** argv) {
  std::vector<char*> arguments;
  for (int i = 0; i < argc; ++i) {
    if (std::string(argv[i]) == "--procs") {
      ++i;
      continue;
    }
    if (!starts_with(argv[i], "--procs=")) arguments.push_back(argv[i]);
  }
  arguments.push_back(nullptr);
  set_environment(count);
  const sigset_t awaited = awaited_signals();
  sigset_t before;
  ::sigprocmask(SIG_BLOCK, &awaited, &before);
  Children children;
  for (int rank = 0; rank < count; ++rank) {
    for (const char* name : {"RANK", "LOCAL_RANK"}) ::setenv(name, cat(rank).c_str(), 1);
    const pid_t child = start(arguments, before);
    if (child < 0) {
      const std::string reason = std::strerror(errno);
      children.send(SIGKILL);
      fail(ErrorKind::kFailure,
           cat("process ", rank + 1, " of ", count, " cannot be started: ", reason),
           "fewer --procs, or see `ulimit -u` and the container's pids.max");
    }
    children.add(child);
  }
  supervise(children, awaited);
  const Child* cause = children.cause();
  if (!cause) return 0;
  const int code = exit_code_of(*cause->status);
  if (stopped_on_request(code)) return code;
  std::fprintf(stderr, "error: %s\n", ending_of(*cause).c_str());
  if (code == 128 + SIGKILL) {
    std::fprintf(stderr,
                 "hint: out of memory (see `dmesg`), a limit of the batch system, or kill -9\n");
  }
  return code;
}

}  // namespace tiltflow::app
