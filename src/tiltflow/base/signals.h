// Stopping on request. SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2 and SIGXCPU raise a flag; long
// work calls check_stop between its pieces, which throws. What does not hear the flag in time (one
// long product, a foreign network, a wait) is ended by a deadline.
#pragma once

#include <functional>
#include <string>

namespace tiltflow {

// Called once by a program. A signal that is ignored already stays ignored (nohup, background
// jobs). A second signal ends the program at once. SIGPIPE and SIGXFSZ are ignored: what they
// announce is the error of a write. From the first signal on the process has 1.4 seconds to leave
// by itself; then its temporary files are removed and it is ended with stop_exit_code(). A
// StopKeeper that saves takes the place of that deadline.
void install_stop_handlers();
bool stop_handlers_installed();

bool is_stop_signal(int signal);  // one of those named above
int stop_signal();                // 0, or the first signal
std::string stop_signal_name();   // "SIGTERM"
void check_stop();  // throws kStopped after a signal; costs one read of a variable otherwise
// Stops like a signal would: SIGPIPE when nobody reads standard output any more.
void request_stop(int signal);
// Forgets a signal and its deadline: for programs that go on after a stop, and for tests.
void forget_stop();

// 75 when a StopKeeper was alive at the stop (what is finished can be continued), else 128 +
// signal; SIGINT: 130 always.
int stop_exit_code();

// While it lives, a stop leaves something to continue from; `hint` says how. The outermost one
// speaks: it is what the user started.
class StopKeeper {
 public:
  explicit StopKeeper(std::string hint);
  ~StopKeeper();
  StopKeeper(const StopKeeper&) = delete;
  StopKeeper& operator=(const StopKeeper&) = delete;
};

// A StopKeeper that also saves what is not on disk yet. When work has not ended within a second of
// a signal, a thread of its own calls `save` (which must lock against the work it interrupts) and
// ends the process; `save` answers the sentence that is printed.
class StopSaver {
 public:
  StopSaver(std::string hint, std::function<std::string()> save);
  ~StopSaver();
  StopSaver(const StopSaver&) = delete;
  StopSaver& operator=(const StopSaver&) = delete;

 private:
  struct Watch;
  StopKeeper keeper_;
  Watch* watch_;
};

}  // namespace tiltflow
