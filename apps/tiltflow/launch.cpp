#include "launch.h"

#include <arpa/inet.h>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <string>
#include <sys/socket.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>
#include <vector>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"

namespace tiltflow::app {
namespace {

volatile std::sig_atomic_t g_passed_on = 0;
void remember(int signal) { g_passed_on = signal; }

// A port that is free now; rank 0 binds it a moment later.
int free_port() {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET, address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  const bool ok = fd >= 0 && ::bind(fd, reinterpret_cast<sockaddr*>(&address), size) == 0 && ::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) == 0;
  if (fd >= 0) ::close(fd);
  if (!ok) fail(ErrorKind::kFailure, "no free port for the processes to meet");
  return ntohs(address.sin_port);
}

int exit_code_of(int status) { return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status); }

}  // namespace

int launch(int count, int argc, char** argv) {
  std::vector<char*> arguments;
  for (int i = 0; i < argc; ++i) {
    if (std::string(argv[i]) == "--procs") { ++i; continue; }
    if (starts_with(argv[i], "--procs=")) continue;
    arguments.push_back(argv[i]);
  }
  arguments.push_back(nullptr);
  ::setenv("WORLD_SIZE", cat(count).c_str(), 1), ::setenv("LOCAL_WORLD_SIZE", cat(count).c_str(), 1);
  ::setenv("MASTER_ADDR", "127.0.0.1", 1), ::setenv("MASTER_PORT", cat(free_port()).c_str(), 1);
  struct sigaction action {};
  action.sa_handler = remember;  // without SA_RESTART: wait() returns
  ::sigaction(SIGTERM, &action, nullptr), ::sigaction(SIGINT, &action, nullptr);
  std::vector<pid_t> children;
  for (int rank = 0; rank < count; ++rank) {
    ::setenv("RANK", cat(rank).c_str(), 1), ::setenv("LOCAL_RANK", cat(rank).c_str(), 1);
    const pid_t child = ::fork();
    if (child < 0) fail(ErrorKind::kFailure, "cannot start another process");
    if (child == 0) {
      ::setpgid(0, 0);  // a Ctrl-C at the terminal reaches the children once, through this process
      ::execv("/proc/self/exe", arguments.data());
      ::_exit(127);
    }
    children.push_back(child);
  }
  int result = 0;
  std::size_t left = children.size();
  bool killing = false;
  while (left > 0) {
    int status = 0;
    const pid_t ended = ::waitpid(-1, &status, 0);
    if (const int signal = g_passed_on; signal != 0) {
      g_passed_on = 0;
      for (const pid_t child : children) if (child > 0) ::kill(child, signal);
    }
    if (ended < 0) continue;
    --left;
    for (pid_t& child : children) if (child == ended) child = 0;
    const int code = exit_code_of(status);
    if (code == 0) continue;
    // A process that lost its partner ends with 1; the one that failed first may be reaped later, with a code that says more.
    if (result == 0 || (result == 1 && code != 128 + SIGKILL)) result = code;
    if (code == 75 || code == 130 || killing) continue;  // stopped on request: the others stop by themselves
    killing = true;
    std::thread([children] {
      std::this_thread::sleep_for(std::chrono::seconds(1));  // time to notice by themselves
      for (const pid_t child : children) if (child > 0) ::kill(child, SIGKILL);
    }).detach();
  }
  return result;
}

}  // namespace tiltflow::app
