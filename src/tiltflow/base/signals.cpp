#include "tiltflow/base/signals.h"

#include <semaphore.h>
#include <sys/time.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <ctime>
#include <system_error>
#include <thread>
#include <utility>

#include "tiltflow/base/error.h"
#include "tiltflow/base/log.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/base/temporary_file.h"

namespace tiltflow {
namespace {

struct Name {
  int signal;
  const char* text;
};
constexpr Name kNames[] = {{SIGTERM, "SIGTERM"}, {SIGINT, "SIGINT"},   {SIGHUP, "SIGHUP"},
                           {SIGUSR1, "SIGUSR1"}, {SIGUSR2, "SIGUSR2"}, {SIGXCPU, "SIGXCPU"},
                           {SIGPIPE, "SIGPIPE"}};
constexpr int kHandled = 6;  // SIGPIPE only comes through request_stop

constexpr int kDeadlineMilliseconds = 1400;
constexpr int kSaverPatience = 1000;
// SIGXCPU comes every second by itself, and `timeout` and process groups deliver one request twice;
// a person needs longer.
constexpr long kSameRequestMilliseconds = 100;

volatile std::sig_atomic_t g_signal = 0;
volatile std::sig_atomic_t g_kept = 0;          // keepers alive
volatile std::sig_atomic_t g_savers = 0;        // of them with a thread that saves
volatile std::sig_atomic_t g_stopped_kept = 0;  // g_kept at the stop
std::atomic<bool> g_installed{false};
std::string g_hint;  // of the outermost keeper: it is what the user started
timespec g_first{};
sem_t g_wake;  // posted by the handler, awaited by the thread of a StopSaver

const char* name_of(int signal) {
  for (const Name& each : kNames) {
    if (each.signal == signal) return each.text;
  }
  return "a signal";
}

long milliseconds_since(const timespec& begin) {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return (now.tv_sec - begin.tv_sec) * 1000 + (now.tv_nsec - begin.tv_nsec) / 1000000;
}

void set_alarm(int milliseconds) {
  itimerval timer{};
  timer.it_value.tv_sec = milliseconds / 1000;
  timer.it_value.tv_usec = (milliseconds % 1000) * 1000;
  ::setitimer(ITIMER_REAL, &timer, nullptr);
}

void write_text(const char* text) {
  [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, text, std::strlen(text));
}

// The functions below run inside signal handlers: system calls and flags only.

void note_stop(int signal) {
  g_signal = signal;
  g_stopped_kept = g_kept;
  ::clock_gettime(CLOCK_MONOTONIC, &g_first);
  ::sem_post(&g_wake);
  set_alarm(kDeadlineMilliseconds);
}

void on_signal(int signal) {
  const int saved = errno;
  if (g_signal == 0) {
    note_stop(signal);
  } else if (signal != SIGXCPU && milliseconds_since(g_first) > kSameRequestMilliseconds) {
    remove_temporary_files();
    ::signal(signal, SIG_DFL);
    ::raise(signal);
  }
  errno = saved;
}

void on_deadline(int) {
  if (g_savers > 0) return;  // it ends the process
  remove_temporary_files();
  if (g_signal != SIGPIPE) {
    write_text("error: stopped by ");
    write_text(name_of(g_signal));
    write_text("\n");
  }
  ::_exit(stop_exit_code());
}

void handle(int signal, void (*handler)(int)) {
  struct sigaction old{};
  if (::sigaction(signal, nullptr, &old) == 0 && old.sa_handler == SIG_IGN) return;
  struct sigaction action{};
  action.sa_handler = handler;
  action.sa_flags = SA_RESTART;
  ::sigaction(signal, &action, nullptr);
}

}  // namespace

void install_stop_handlers() {
  if (g_installed.exchange(true)) return;
  ::sem_init(&g_wake, 0, 0);
  sigset_t heard;
  ::sigemptyset(&heard);
  for (int i = 0; i < kHandled; ++i) {
    handle(kNames[i].signal, on_signal);
    ::sigaddset(&heard, kNames[i].signal);
  }
  struct sigaction deadline{};
  deadline.sa_handler = on_deadline;
  ::sigaction(SIGALRM, &deadline, nullptr);
  ::signal(SIGPIPE, SIG_IGN);  // writing answers EPIPE,
  ::signal(SIGXFSZ, SIG_IGN);  // and EFBIG
  ::sigaddset(&heard, SIGALRM);
  ::sigprocmask(SIG_UNBLOCK, &heard, nullptr);
}

bool stop_handlers_installed() { return g_installed; }
bool is_stop_signal(int signal) {
  for (int i = 0; i < kHandled; ++i) {
    if (kNames[i].signal == signal) return true;
  }
  return false;
}
int stop_signal() { return g_signal; }
std::string stop_signal_name() { return name_of(g_signal); }

void check_stop() {
  if (g_signal == 0) return;
  fail(ErrorKind::kStopped, cat("stopped by ", stop_signal_name()), g_hint);
}

void request_stop(int signal) {
  if (g_installed && g_signal == 0) note_stop(signal);
}

void forget_stop() {
  set_alarm(0);
  g_signal = 0;
  g_stopped_kept = 0;
  while (g_installed && ::sem_trywait(&g_wake) == 0) continue;
}

int stop_exit_code() {
  if (g_signal != SIGINT && g_signal != SIGPIPE && g_stopped_kept > 0) {
    return exit_code(ErrorKind::kStopped);
  }
  return 128 + g_signal;
}

StopKeeper::StopKeeper(std::string hint) {
  if (g_kept == 0) g_hint = std::move(hint);
  g_kept = g_kept + 1;
}

StopKeeper::~StopKeeper() {
  g_kept = g_kept - 1;
  if (g_kept == 0) g_hint.clear();
}

struct StopSaver::Watch {
  std::function<std::string()> save;
  std::atomic<bool> over{false};
  std::thread thread;

  void run() {
    while (!over && g_signal == 0) ::sem_wait(&g_wake);
    for (int waited = 0; waited < kSaverPatience && !over; waited += 10) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    if (over) return;
    std::string said;
    try {
      said = save();
    } catch (const std::exception& error) {
      said = cat("stopped by ", stop_signal_name(),
                 ", and the last step could not be saved: ", error.what());
    }
    remove_temporary_files();
    write_text(cat("error: ", said, "\n").c_str());
    ::_exit(stop_exit_code());
  }
};

StopSaver::StopSaver(std::string hint, std::function<std::string()> save)
    : keeper_(std::move(hint)), watch_(new Watch) {
  watch_->save = std::move(save);
  if (!g_installed) return;
  try {
    watch_->thread = std::thread([watch = watch_] { watch->run(); });
    g_savers = g_savers + 1;
  } catch (const std::system_error&) {
    log_debug("no thread can be made that saves on a stop: the work itself has to hear it");
  }
}

StopSaver::~StopSaver() {
  watch_->over = true;
  if (watch_->thread.joinable()) {
    g_savers = g_savers - 1;
    ::sem_post(&g_wake);
    watch_->thread.join();
    if (g_signal != 0) set_alarm(kDeadlineMilliseconds);  // what is left is the way out
  }
  delete watch_;
}

}  // namespace tiltflow
